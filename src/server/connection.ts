/**
 * One logged-in server connection: sends what its holder gives it and hands every byte that arrives to whom it belongs.
 * Made by server/opener; held by one Owner at a time (a session, or a cleanup), or by nobody while idle.
 *
 *     socket → FrameReader → Outstanding says whose → runs of bytes → owner.deliver → … → owner.onProgress
 *
 * The one idea: neighbouring messages of one owner leave as one slice of the chunk they came in; the bytes of rows are
 * never looked at. State lives in `outstanding` (what the server owes), `settings` (what its session is set to) and
 * `statements` (what it has prepared); nothing here knows of pools or policies.
 */
import type net from 'node:net';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, type Frame, FrameReader } from '../protocol/frame.ts';
import { readErrorFields, readParameter, ServerMessage, Status } from '../protocol/messages.ts';
import { type Note, Outstanding, type RequestKind } from '../protocol/outstanding.ts';
import { isUnhealthy, SqlState } from '../protocol/sqlstate.ts';
import type { Chain, Link } from '../util/chain.ts';
import { Outbox } from '../util/outbox.ts';
import type { Slab } from '../util/slab.ts';
import { type LoggedIn, type ServerTarget, sendCancel } from './login.ts';
import type { Settings, SettingsBook } from './settings.ts';
import { ServerStatements } from './statements.ts';

/** Who gets what a server sends. */
export interface Owner {
  /** Bytes for the other side, in order. False: stop reading until `ServerConnection.resume`. */
  deliver(bytes: Buffer): boolean;
  /** All that was delivered has left, and nobody else has been given anything: what the bytes lie in may be used again. */
  readonly isDelivered?: boolean;
  /** Everything that arrived together has been delivered; the state of `outstanding` may have changed. */
  onProgress(): void;
  /** The server can be written to again. */
  onWritable(): void;
  /** The server reported a parameter, not in answer to a request of the proxy itself. */
  onParameter(name: string, value: string): void;
  /** A command ended with a tag that begins with A or D (ALTER TABLE, DISCARD ALL, …). */
  onTag(tag: string): void;
  /** A ReadyForQuery has been delivered, or swallowed, whose request has ended. */
  onReady?(): void;
  /** The connection is gone and taken from its pool. `isTold`: the server's own FATAL has been delivered. */
  onLost(reason: string, isTold: boolean): void;
}

/** Plain counters, shared by the connections of one pool and read at scrape time. */
export interface TrafficCounts {
  transactions: number;
  queries: number;
  /** Bytes from servers. */
  received: number;
  /** Bytes to servers. */
  sent: number;
  errors: number;
  /** Errors that speak of the server's own health, and servers lost while they worked (protocol/sqlstate). */
  failures: number;
}

/** How long a statement has to answer a cancel request of `pool.queryMax` before its server is closed. */
export const CANCEL_MS = 5_000;
/** Messages that must be seen whole are kept up to this size; a larger one is forwarded unseen. */
const WHOLE_MAX = 1024 * 1024;
const HEADER = 5;
const MESSAGE_MAX = 0x40000000 + HEADER; // What Postgres itself can build (MaxAllocSize).
/** What the SQLSTATE of an ErrorResponse stands behind: the end of the field before, and its letter. */
const CODE_FIELD = '\0C';
/** Tags that matter begin with these: ALTER …, DEALLOCATE ALL, DISCARD ALL, DROP …. */
const LETTER_A = 0x41;
const LETTER_D = 0x44;

const frame = emptyFrame();

export class ServerConnection implements Link<ServerConnection> {
  chain: Chain<ServerConnection> | null = null;
  before: ServerConnection | null = null;
  behind: ServerConnection | null = null;

  readonly id: number;
  readonly target: ServerTarget;
  readonly pid: number;
  readonly openedAt: number;
  /** When it was last given to a holder or given back. */
  changedAt: number;
  /** The age in ms at which it is closed, jittered so that servers opened together do not close together. */
  readonly lifetimeMs: number;
  readonly outstanding: Outstanding<Owner>;
  readonly statements: ServerStatements;
  settings: Settings;
  /** What `RESET ALL` leads back to. */
  login: Settings;
  /** Whose Parse made the unnamed statement that the server has; 0: nobody's, -1: the proxy's own or an unknown one. */
  unnamedId = 0;
  holder: Owner | null = null;
  /** It must not be used again: RECONNECT, a changed configuration, or replies that cannot be told apart. */
  isDoomed = false;
  isClosed = false;

  readonly #socket: net.Socket;
  readonly #outbox: Outbox;
  readonly #key: Buffer;
  readonly #book: SettingsBook;
  readonly #counts: TrafficCounts;
  readonly #onClose: (server: ServerConnection, reason: string) => void;
  readonly #reader: FrameReader;
  #cancels = 0;
  /** One of them has not been sent yet. What has been sent is for what ran then, not for what its holder has asked since. */
  #isCancelLeaving = false;
  /** What whoever is cancelled is told instead of "due to user request"; null: that. */
  #cancelText: string | null = null;
  /** It was asked to cancel something, and has not said yet that it did. */
  #isCancelSent = false;
  /** Bytes received; how many they were at the last tick; and since when they are not more although it owes something. */
  #received = 0;
  #seen = 0;
  #silentSince: number;
  #reason = 'the server closed the connection';
  #isTold = false;
  // The run of bytes not yet delivered: `#source[#start, #end)` for `#receiver`.
  #source: Buffer | null = null;
  #start = 0;
  #end = 0;
  #receiver: Owner | null = null;
  // The message that is passing.
  #delivery: 'forward' | 'swallow' | 'holder' = 'holder';

  constructor(
    loggedIn: LoggedIn,
    options: {
      id: number;
      target: ServerTarget;
      now: number;
      lifetimeMs: number;
      preparedMax: () => number;
      book: SettingsBook;
      counts: TrafficCounts;
      onClose: (server: ServerConnection, reason: string) => void;
    },
  ) {
    this.id = options.id;
    this.target = options.target;
    this.openedAt = options.now;
    this.changedAt = options.now;
    this.#silentSince = options.now;
    this.lifetimeMs = options.lifetimeMs;
    this.#socket = loggedIn.socket;
    this.#outbox = new Outbox(loggedIn.socket);
    this.#key = loggedIn.key;
    this.pid = loggedIn.key.length >= 4 ? loggedIn.key.readInt32BE(0) : 0;
    this.#book = options.book;
    this.#counts = options.counts;
    this.#onClose = options.onClose;
    this.statements = new ServerStatements(options.preparedMax);
    this.settings = options.book.intern(loggedIn.reported, new Map());
    this.login = this.settings;
    this.outstanding = new Outstanding<Owner>((owner, reply) => {
      this.#flush();
      this.#hand(owner, reply);
    });
    this.#reader = new FrameReader((type, size) => this.#wants(type, size), MESSAGE_MAX);
    this.#socket
      .on('data', (chunk: Buffer, slab?: Slab) => this.#onData(chunk, slab))
      .on('drain', () => this.holder?.onWritable())
      .on('error', (error) => {
        this.#reason = `the connection to the server failed: ${error.message}`;
      })
      .on('end', () => this.#socket.end())
      .on('close', () => {
        if (!this.isClosed && !this.#isTold && !this.outstanding.isQuiet) this.#counts.failures++;
        this.#onGone();
      });
    if (loggedIn.rest.length > 0) this.#onData(loggedIn.rest);
    this.#socket.resume();
  }

  get localPort(): number {
    return this.#socket.localPort ?? 0;
  }

  get localAddress(): string {
    return this.#socket.localAddress ?? '';
  }

  get isTls(): boolean {
    return 'encrypted' in this.#socket;
  }

  /** Free of obligations: it owes nothing, has no transaction open, and no cancel request is on its way to it. */
  get isFree(): boolean {
    return this.outstanding.isFree && this.#cancels === 0;
  }

  get isCanceling(): boolean {
    return this.#cancels > 0;
  }

  /** The server takes more bytes; otherwise `Owner.onWritable` will be called. */
  get isWritable(): boolean {
    return !this.#socket.writableNeedDrain;
  }

  /** Runs a simple query of the proxy's own; its replies are not delivered. */
  ask(sql: string, owner: Owner, note: Note | null): void {
    this.unnamedId = 0; // A simple Query drops the unnamed statement.
    this.#askFor('Query', encode.query(sql), owner, note);
  }

  /**
   * As `ask`, within a transaction, where the client's unnamed statement and portal must survive: in the extended
   * protocol, under names of the proxy's own. The note hears what the last statement answers, and of its end when
   * ReadyForQuery has come: only before that does a server report what has become of its parameters.
   */
  askAside(statements: readonly string[], owner: Owner, note: Note): void {
    let hasFailed = false;
    const heard: Note = {
      message: (type, bytes) => note.message?.(type, bytes),
      dropped: () => {
        hasFailed = true;
      },
    };
    for (const sql of statements) {
      for (const [kind, bytes] of encode.aside(sql))
        this.#askFor(kind, bytes, owner, kind === 'Execute' ? heard : null);
    }
    this.#askFor('Sync', encode.sync, owner, {
      done: () => (hasFailed ? note.dropped?.(false) : note.done?.()),
      dropped: (isSkipped) => note.dropped?.(isSkipped),
    });
  }

  /**
   * Begins a transaction with `sql`, ahead of something that `owner` sends next and that ends with ReadyForQuery. No server
   * refuses the texts that this is for (sql/control); should one do so, what comes behind must not run, or not be believed.
   * `hasPortal`: the unnamed portal stays.
   */
  begin(sql: string, hasPortal: boolean, owner: Owner): void {
    this.unnamedId = -1;
    this.#askFor('Begin', encode.begin(sql, hasPortal), owner, {
      dropped: (isSkipped) => {
        if (!isSkipped) this.close('it did not begin a transaction');
      },
    });
  }

  /** Sends a request of the proxy's own, unless the server would skip it. */
  #askFor(kind: RequestKind, bytes: Buffer, owner: Owner, note: Note | null): void {
    if (this.outstanding.push(kind, owner, 'swallow', null, note)) this.send(bytes);
  }

  /** Finds out whether a Sync counts that was sent amid CopyData (protocol/outstanding). */
  resync(owner: Owner): void {
    if (this.outstanding.push('Resync', owner, 'forward', null, null)) this.#sendResync();
  }

  /** Sends bytes of the proxy's own. What is sent in one turn of the event loop leaves in one system call. */
  send(bytes: Buffer): void {
    this.#counts.sent += bytes.length;
    this.#outbox.add(bytes);
  }

  /** Passes on `source[start, end)`; neighbouring pieces leave as one slice. */
  forward(source: Buffer, start: number, end: number): void {
    this.#counts.sent += end - start;
    this.#outbox.addRun(source, start, end);
  }

  /** Has it send the replies that it keeps back. */
  askForReplies(): void {
    if (this.outstanding.isFlushWanted) this.send(encode.flush);
  }

  /** Reads on after `Owner.deliver` said stop. */
  resume(): void {
    this.#socket.resume();
  }

  /**
   * Asks the server to cancel what it is running, if it is still `holder` who wants that when the request leaves. `text`: why,
   * when it is not the client who wants it.
   */
  cancel(holder: Owner, text: string | null = null): void {
    if (this.#isCancelLeaving) return; // That one cancels whatever runs when it leaves.
    this.#isCancelLeaving = true;
    this.#cancels++;
    this.#cancelText = text;
    this.#isCancelSent = true;
    sendCancel(
      this.target,
      this.#key,
      () => {
        this.#isCancelLeaving = false;
        return this.holder === holder && this.outstanding.size > 0 && !this.isClosed;
      },
      () => {
        // Where it never left, too.
        this.#isCancelLeaving = false;
        this.#cancels--;
        this.holder?.onProgress();
      },
    );
  }

  /** A message has arrived in part. */
  get isInside(): boolean {
    return this.#reader.isInside;
  }

  /** Called every fraction of a second while somebody uses it. */
  tick(now: number): void {
    const { outstanding } = this;
    const owes =
      outstanding.size > 0 && !outstanding.isBatchOpen && !outstanding.isCopyOpen && !this.#socket.isPaused();
    if (owes && this.#received === this.#seen) return;
    this.#seen = this.#received;
    this.#silentSince = now;
  }

  /** For how long it has owed an answer and sent nothing, in ms, to within a tick. */
  silentFor(now: number): number {
    // Nobody looks while it is idle.
    return now - Math.max(this.#silentSince, this.changedAt);
  }

  /** Closes with Terminate, or at once when something is still outstanding. */
  close(reason: string): void {
    if (this.isClosed) return;
    this.#reason = reason;
    this.#outbox.flush();
    if (this.outstanding.isQuiet) {
      this.#socket.end(encode.terminate);
      this.#socket.resume();
    } else this.#socket.destroy();
    this.#onGone();
  }

  #onGone(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    const holder = this.holder;
    this.holder = null;
    this.#onClose(this, this.#reason);
    holder?.onLost(this.#reason, this.#isTold);
    this.outstanding.drop();
  }

  /** `slab`: where `chunk` lies, if not in memory of its own. */
  #onData(chunk: Buffer, slab?: Slab): void {
    this.#counts.received += chunk.length;
    this.#received += chunk.length;
    const { holder } = this;
    this.#reader.push(chunk);
    let found = this.#reader.next(frame);
    for (; found === 'frame' && !this.isClosed; found = this.#reader.next(frame)) this.#onFrame(frame);
    this.#flush();
    if (this.isClosed) return;
    if (found !== 'starved') {
      this.isDoomed = true;
      this.close('the server sent a message of an impossible length');
      return;
    }
    const isSame = this.holder === holder;
    if (this.holder !== null) this.holder.onProgress();
    else if (this.outstanding.isLost) this.close('the server sent a reply that nobody had asked for');
    if (isSame && holder?.isDelivered === true) slab?.rewind();
  }

  /** How much of a message must be seen at once: all of it where its content matters, else only the header. */
  #wants(type: number, size: number): number {
    switch (type) {
      case ServerMessage.ReadyForQuery:
      case ServerMessage.ParameterStatus:
      case ServerMessage.ErrorResponse:
      case ServerMessage.CommandComplete:
        return Math.min(size, WHOLE_MAX);
      default: {
        const note = this.outstanding.head?.note;
        return note?.message === undefined ? HEADER : Math.min(size, WHOLE_MAX);
      }
    }
  }

  #onFrame(piece: Frame): void {
    // Take what is needed out of the shared frame: what follows may run other readers.
    const { type, source, start, end, isStart, isEnd } = piece;
    if (isStart && type === ServerMessage.ErrorResponse && this.outstanding.isFree && this.holder !== null)
      this.#part();
    if (this.isClosed) return;
    if (isStart)
      this.#delivery = this.outstanding.begin(type, type === ServerMessage.ReadyForQuery ? source[start + HEADER]! : 0);
    const isWhole = isStart && isEnd;
    const replaced = isWhole && this.#look(type, source, start, end);
    if (!replaced && this.#delivery !== 'swallow') this.#take(source, start, end);
    if (!isEnd) return;
    const { holder } = this; // The end of this request may give the server to somebody else, who has had no answer yet.
    this.outstanding.end();
    if (this.outstanding.isResyncWanted) this.#sendResync();
    if (type !== ServerMessage.ReadyForQuery || holder?.onReady === undefined) return;
    this.#flush();
    holder.onReady();
  }

  /**
   * It owes nothing and has something to complain of: it is about to go. Whoever was answered a moment ago need not hear of that,
   * unless he keeps it.
   */
  #part(): void {
    this.isDoomed = true;
    this.#flush();
    this.holder!.onProgress();
  }

  #sendResync(): void {
    this.outstanding.isResyncWanted = false;
    this.unnamedId = 0; // A simple Query drops the unnamed statement.
    this.send(encode.resync);
  }

  /** Acts upon what a whole message says. True: the owner has been given something else in its place. */
  #look(type: number, source: Buffer, start: number, end: number): boolean {
    const note = this.outstanding.head?.note ?? null;
    if (note?.message !== undefined) note.message(type, Buffer.from(source.subarray(start, end)));
    switch (type) {
      case ServerMessage.ParameterStatus:
        return this.#onParameter(source.subarray(start + HEADER, end), note?.ready !== undefined);
      case ServerMessage.CommandComplete:
        if (source[start + HEADER] === LETTER_D || source[start + HEADER] === LETTER_A)
          this.#onTag(source.toString('latin1', start + HEADER, end - 1));
        return false;
      case ServerMessage.ReadyForQuery:
        if (this.#delivery === 'forward' && source[start + HEADER] === Status.Idle) this.#counts.transactions++;
        if (note?.ready === undefined || this.#delivery !== 'forward') return false;
        note.ready(source[start + HEADER]!);
        return true;
      case ServerMessage.ErrorResponse:
        return this.#onError(note?.replaceError, source.subarray(start, end));
      default:
        return false;
    }
  }

  /** True: it is kept from the holder. */
  #onParameter(body: Buffer, isKept: boolean): boolean {
    const { name, value } = readParameter(body);
    this.settings = this.#book.withReported(this.settings, name, value);
    // Reported while nobody uses the server: its configuration was reloaded, this is the new default.
    if (this.holder === null) this.login = this.#book.withReported(this.login, name, value);
    else if (this.#delivery !== 'swallow' && !isKept) this.holder.onParameter(name, value);
    return isKept;
  }

  #onTag(tag: string): void {
    if (tag === 'DEALLOCATE ALL' || tag === 'DISCARD ALL') this.statements.clear();
    if (tag === 'DISCARD ALL') this.settings = this.#book.intern(this.settings.reported, new Map());
    if (tag === 'DISCARD ALL') this.unnamedId = 0;
    // What connectQuery has set is lost with it.
    if (tag === 'DISCARD ALL' && this.target.connectQuery !== undefined) this.isDoomed = true;
    this.holder?.onTag(tag);
  }

  #onError(replaceError: ((bytes: Buffer) => Buffer) | undefined, bytes: Buffer): boolean {
    this.#counts.errors++;
    const code = bytes.indexOf(CODE_FIELD) + CODE_FIELD.length;
    const sqlstate = bytes.toString('latin1', code, code + 5);
    // A client's own statement_timeout is its own affair.
    const isOwn = this.#isCancelSent || this.settings.custom.has('statement_timeout');
    if (isUnhealthy(sqlstate, isOwn)) this.#counts.failures++;
    const text = sqlstate === SqlState.QueryCanceled ? this.#cancelText : null;
    if (sqlstate === SqlState.QueryCanceled) this.#isCancelSent = false;
    if (sqlstate === SqlState.QueryCanceled) this.#cancelText = null;
    if (bytes.includes('VFATAL\0') || bytes.includes('VPANIC\0')) {
      this.#reason = readErrorFields(bytes.subarray(HEADER)).get('M') ?? this.#reason;
      this.#isTold = this.#delivery !== 'swallow' && this.#receiverNow() !== null;
    }
    const receiver = this.#receiverNow();
    if (this.#delivery === 'swallow' || receiver === null) return false;
    if (replaceError === undefined && text === null) return false;
    const told =
      text === null ? bytes : encode.errorFields(new Map([...readErrorFields(bytes.subarray(HEADER)), ['M', text]]));
    this.#flush();
    this.#hand(receiver, replaceError?.(told) ?? told);
    return true;
  }

  #receiverNow(): Owner | null {
    return this.#delivery === 'forward' ? (this.outstanding.head?.owner ?? null) : this.holder;
  }

  /** Adds bytes to the run, or starts another one. */
  #take(source: Buffer, start: number, end: number): void {
    const receiver = this.#receiverNow();
    if (source !== this.#source || start !== this.#end || receiver !== this.#receiver) {
      this.#flush();
      this.#source = source;
      this.#start = start;
      this.#receiver = receiver;
    }
    this.#end = end;
  }

  #flush(): void {
    const source = this.#source;
    if (source === null) return;
    this.#source = null;
    if (this.#receiver !== null) {
      const isAll = this.#start === 0 && this.#end === source.length;
      this.#hand(this.#receiver, isAll ? source : source.subarray(this.#start, this.#end));
    }
  }

  #hand(owner: Owner, bytes: Buffer): void {
    if (!owner.deliver(bytes)) this.#socket.pause();
  }
}
