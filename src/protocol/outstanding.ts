/**
 * What a server still owes: the queue of outstanding requests of one server connection, as a pure state machine
 * without sockets. server/connection tells it what was sent and what arrives; it says to whom each reply belongs and
 * whether to forward or swallow it, when to put in a reply of our own, and when the server is free.
 *
 *     sent     →  [Parse swallow] [Bind forward] [Execute forward] [Close synthesize] [Sync forward]
 *     arrives  →   1               2              D D D C           (ours: 3)          Z
 *
 * The one idea: every reply is judged by the head of the queue, never by "the client that has this server". An entry
 * carries its owner, so that several owners can stand in one queue.
 *
 * Protocol rules it embodies (Postgres manual, "Message Flow"):
 * - Extended Query: after an error the server skips everything until Sync, a simple Query included.
 * - Simple Query and Function Call answer with exactly one ReadyForQuery, Sync likewise; nothing else does.
 * - COPY: while it reads CopyData the server ignores Sync and Flush; after a failure it ignores late CopyData. So when
 *   a COPY fails that was sent a Sync amid its data, nobody can tell from outside whether that Sync counts: the server
 *   is asked, by a Resync (a Sync and an empty Query behind it, see `#beginResync`).
 *
 * Invariants: replies leave in the order of the requests; an entry ends exactly once, as done or dropped; dropped
 * notes are told in reverse order, so that undoing them restores the state before.
 */
import { readyForQuery } from './encode.ts';
import { ServerMessage, Status } from './messages.ts';

/**
 * What was sent. CopyData and CopyEnd get no reply: they mark where in the stream a COPY ends. A Resync is sent by us, a
 * Sync and an empty Query; a Begin too, Parse, Bind and Execute of BEGIN and Close of its portal, without Sync.
 */
export type RequestKind =
  | 'Parse'
  | 'Bind'
  | 'Close'
  | 'Describe'
  | 'Execute'
  | 'Sync'
  | 'Query'
  | 'FunctionCall'
  | 'CopyData'
  | 'CopyEnd'
  | 'Resync'
  | 'Begin';

/** What becomes of the reply: passed on, kept from the owner, or written by us (the request was never sent). */
export type Action = 'forward' | 'swallow' | 'synthesize';

/** What the sender of an entry wants to know of its end. Called synchronously, from `end`. */
export interface Note {
  /** The reply came and was no error (for Query: ReadyForQuery came). */
  done?(): void;
  /** The server answered with an error, or skipped the request because an earlier one failed (`isSkipped`). */
  dropped?(isSkipped: boolean): void;
  /** Whole messages of the reply, header included, for requests of our own and descriptions that we remember. */
  message?(type: number, bytes: Buffer): void;
  /** Sent to the owner instead of the server's error, given that error. */
  replaceError?(bytes: Buffer): Buffer;
  /**
   * ReadyForQuery has come, with this status: the owner is given it, and what has become of reported parameters since
   * the reply began, by somebody else and later.
   */
  ready?(status: number): void;
  /** The action is 'swallow', but an error is the owner's: it stands for the request that needed this one. */
  errorIsForward?: boolean;
}

/** Two notes as one: both hear of the end, and errors are replaced by the first, then by the second. */
export function both(first: Note | null, second: Note | null): Note | null {
  if (first === null || second === null) return first ?? second;
  const note: Note = {
    done() {
      first.done?.();
      second.done?.();
    },
    dropped(isSkipped) {
      first.dropped?.(isSkipped);
      second.dropped?.(isSkipped);
    },
  };
  if (first.message !== undefined || second.message !== undefined) {
    note.message = (type, bytes) => {
      first.message?.(type, bytes);
      second.message?.(type, bytes);
    };
  }
  if (first.replaceError !== undefined || second.replaceError !== undefined) {
    note.replaceError = (bytes) => {
      const replaced = first.replaceError?.(bytes) ?? bytes;
      return second.replaceError?.(replaced) ?? replaced;
    };
  }
  if (first.ready !== undefined || second.ready !== undefined) {
    note.ready = (status) => {
      first.ready?.(status);
      second.ready?.(status);
    };
  }
  note.errorIsForward = first.errorIsForward === true || second.errorIsForward === true;
  return note;
}

export interface Entry<Owner> {
  kind: RequestKind;
  owner: Owner;
  action: Action;
  /** The bytes to send when the action is 'synthesize'. */
  reply: Buffer | null;
  note: Note | null;
}

/** Whose a message is. 'holder': nobody asked for it (notices, notifications, parameter changes, errors when idle). */
export type Delivery = 'forward' | 'swallow' | 'holder';

/** Entries that may be left behind the read end of the queue before it is compacted. */
const SLACK = 64;

export class Outstanding<Owner> {
  readonly #emit: (owner: Owner, reply: Buffer) => void;
  #queue: Entry<Owner>[] = [];
  #read = 0;
  /** Pending entries that end with ReadyForQuery. */
  #readies = 0;
  /** Transaction status of the last ReadyForQuery. */
  status: number = Status.Idle;
  /** Extended messages were sent and neither Sync nor Query after them: an implicit transaction may be open. */
  isBatchOpen = false;
  /** The server skips everything until a Sync that has not been sent yet. */
  isDiscarding = false;
  /** The server reads CopyData. */
  isCopyIn = false;
  /** CopyDone or CopyFail was sent for the COPY that is running. */
  #isCopyEnded = false;
  /** CopyData was sent for the COPY that is running. */
  #hasCopyData = false;
  /** A Sync was sent in the middle of CopyData: whether the server counts it depends on when the COPY fails. */
  #hasLooseSync = false;
  /** The COPY of `#hasLooseSync` has failed: its sender is to send what a Resync consists of. */
  isResyncWanted = false;
  /** Of the Resync whose replies come: ReadyForQuerys so far, the last of which is not passed on yet; then the marker. */
  #syncs = 0;
  #heldStatus = 0;
  #hasMarker = false;
  /** The COPY that failed was of the extended protocol: without a Sync that counts its client has one to send yet. */
  #isSyncOwed = false;
  /** Replies can no longer be told apart: pass everything to the holder, then close the server. */
  isLost = false;
  #ending: Ending | 'warned' = 'stays';
  #type = 0;

  /** `emit` is called, in order, with each reply of our own when its turn comes. */
  constructor(emit: (owner: Owner, reply: Buffer) => void) {
    this.#emit = emit;
  }

  get size(): number {
    return this.#queue.length - this.#read;
  }

  /** The server reads CopyData, and the end of the data has not been sent. */
  get isCopyOpen(): boolean {
    return this.isCopyIn && !this.#isCopyEnded;
  }

  /** The server keeps replies back until it is sent a Flush, or what ends with ReadyForQuery. */
  get isFlushWanted(): boolean {
    return this.isBatchOpen || (this.size > 0 && this.#queue.at(-1)!.kind === 'Begin');
  }

  /** A Sync amid the data of the COPY that is open may or may not count. */
  get isSyncInDoubt(): boolean {
    return this.isCopyIn && this.#hasLooseSync;
  }

  /** The server owes nothing and has no transaction open: it may serve someone else. */
  get isFree(): boolean {
    return this.isQuiet && this.status === Status.Idle;
  }

  /** The server owes nothing and no batch or COPY is open; a transaction may be. */
  get isQuiet(): boolean {
    return this.size === 0 && !this.isBatchOpen && !this.isDiscarding && !this.isCopyIn && !this.isLost;
  }

  /** The status at the moment when the next message is read is known: nothing pending can change it unnoticed. */
  get isStatusCertain(): boolean {
    return this.#readies === 0 && (this.size === 0 || this.status === Status.Idle);
  }

  /** The entry whose reply comes next. */
  get head(): Entry<Owner> | null {
    return this.#queue[this.#read] ?? null;
  }

  /**
   * A request was (or, when this returns true, is to be) sent. Returns false when the server will skip it: the caller
   * need not send it, and its note has been told that it was dropped.
   */
  push(kind: RequestKind, owner: Owner, action: Action, reply: Buffer | null, note: Note | null): boolean {
    if (this.isDiscarding) {
      if (kind !== 'Sync') {
        note?.dropped?.(true);
        return false;
      }
      this.isDiscarding = false;
    }
    switch (kind) {
      case 'CopyData':
      case 'CopyEnd':
        this.#pushCopy(kind, owner);
        return true;
      case 'Sync':
        if (this.isCopyIn && !this.#isCopyEnded) {
          this.#hasLooseSync ||= this.#hasCopyData;
          return true; // Ignored by the server ("COPY Operations"), so nothing is owed.
        }
        this.isBatchOpen = false;
        this.#readies++;
        break;
      case 'Query':
      case 'FunctionCall':
        // In an open batch it is one more step of it: what came before still waits for Sync.
        this.#readies++;
        break;
      case 'Parse':
      case 'Bind':
      case 'Close':
      case 'Describe':
      case 'Execute':
        this.isBatchOpen = true;
        break;
      case 'Resync':
        this.#readies++;
        break;
      case 'Begin': // It completes its own transaction command, so that it leaves no batch open.
        break;
      default:
        kind satisfies never;
    }
    this.#queue.push({ kind, owner, action, reply, note });
    this.#advance();
    return true;
  }

  #pushCopy(kind: 'CopyData' | 'CopyEnd', owner: Owner): void {
    if (this.isCopyIn) {
      if (kind === 'CopyData') this.#hasCopyData = true;
      else this.#isCopyEnded = true;
    } else if (this.size > 0 && this.#queue.at(-1)!.kind !== kind) {
      this.#queue.push({ kind, owner, action: 'swallow', reply: null, note: null });
    }
  }

  /**
   * A server message of `type` begins; `status` is the status byte when it is ReadyForQuery. Says whose it is. Call
   * `end` when its last byte was handled; `head` is the entry that it answers until then.
   */
  begin(type: number, status: number): Delivery {
    this.#type = type;
    this.#ending = 'stays';
    const head = this.head;
    if (type === ServerMessage.NotificationResponse) return 'holder';
    if (isAsynchronous(type)) return head !== null && head.action === 'swallow' ? 'swallow' : 'holder';
    if (head === null || this.isLost) {
      if (type !== ServerMessage.ErrorResponse) this.isLost = true;
      return 'holder';
    }
    if (type === ServerMessage.ReadyForQuery) this.status = status;
    if (type === ServerMessage.ErrorResponse) return this.#beginError(head);
    if (head.kind === 'Resync') return this.#beginResync(head, type, status);
    this.#ending = ending(head.kind, type);
    if (this.#ending === 'failed') {
      this.isLost = true; // Not a reply to what was sent: better one lost server than one wrong answer.
      return 'holder';
    }
    return head.action === 'swallow' ? 'swallow' : 'forward';
  }

  #beginError(head: Entry<Owner>): Delivery {
    this.#ending = endsWithReady(head.kind) ? 'warned' : 'failed';
    return head.action === 'forward' || head.note?.errorIsForward === true ? 'forward' : 'swallow';
  }

  /**
   * Replies of a Resync: a ReadyForQuery for each loose Sync that counts, one for the Sync of the Resync itself, then the
   * marker. Each is passed on when the next has come; the last one before the marker is ours.
   */
  #beginResync({ owner, action }: Entry<Owner>, type: number, status: number): Delivery {
    if (type === ServerMessage.EmptyQueryResponse) this.#hasMarker = true;
    else if (type !== ServerMessage.ReadyForQuery) this.isLost = true;
    else if (this.#hasMarker) this.#ending = 'done';
    else {
      if (this.#syncs++ > 0 && action === 'forward') this.#emit(owner, readyForQuery(this.#heldStatus));
      this.#heldStatus = status;
    }
    return 'swallow';
  }

  #endResync(): void {
    // The server has had our Sync; the client is still to send its own.
    if (this.#isSyncOwed && this.#syncs === 1) this.isDiscarding = true;
    this.#syncs = 0;
    this.#hasMarker = false;
    this.#isSyncOwed = false;
  }

  /** A COPY with a Sync in doubt has failed: a Resync comes next, unless one is on its way. */
  #wantResync(head: Entry<Owner>): void {
    this.#isSyncOwed = head.kind === 'Execute';
    this.isBatchOpen = false;
    if (this.#queue.at(-1)!.kind === 'Resync') return;
    this.isResyncWanted = true;
    this.push('Resync', head.owner, head.action, null, null);
  }

  /** The message that `begin` announced has been handled. */
  end(): void {
    if (this.#type === ServerMessage.ErrorResponse && this.isSyncInDoubt && this.head !== null)
      this.#wantResync(this.head);
    switch (this.#type) {
      case ServerMessage.CopyInResponse:
        this.#beginCopyIn();
        break;
      case ServerMessage.CommandComplete:
      case ServerMessage.ErrorResponse:
        this.isCopyIn = false;
        this.#hasLooseSync = false;
        break;
      default:
    }
    if (this.#ending === 'stays' || this.isLost) return;
    if (this.#ending === 'warned') return this.#warn(this.head!);
    const head = this.#shift();
    if (head.kind === 'Resync') this.#endResync();
    if (head.kind === 'Begin') this.status = Status.Transaction;
    if (this.#ending === 'done') head.note?.done?.();
    else this.#dropUntilSync(head);
    this.#ending = 'stays';
    this.#advance();
  }

  /** A request that ends with ReadyForQuery has failed; what is left of it is to end. */
  #warn(head: Entry<Owner>): void {
    const { note } = head;
    head.note = withoutEnd(note);
    note?.dropped?.(false);
  }

  /** Gives every entry of `owner` the action 'swallow': it has left, its replies are nobody's. Notes stay in force. */
  abandon(owner: Owner): void {
    for (let at = this.#read; at < this.#queue.length; at++) {
      const entry = this.#queue[at]!;
      if (entry.owner !== owner) continue;
      if (entry.action === 'synthesize') entry.reply = null;
      else entry.action = 'swallow';
    }
  }

  /** The connection is gone: every entry ends as dropped. */
  drop(): void {
    const entries = this.#queue.slice(this.#read);
    this.#queue = [];
    this.#read = 0;
    this.#readies = 0;
    for (const entry of entries.reverse()) entry.note?.dropped?.(true);
  }

  #shift(): Entry<Owner> {
    const entry = this.#queue[this.#read++]!;
    if (endsWithReady(entry.kind)) this.#readies--;
    if (this.#read === this.#queue.length) {
      this.#queue.length = 0;
      this.#read = 0;
    } else if (this.#read > SLACK && this.#read * 2 > this.#queue.length) {
      this.#queue.splice(0, this.#read);
      this.#read = 0;
    }
    return entry;
  }

  /** Sends the replies of our own whose turn has come. */
  #advance(): void {
    for (let head = this.head; head !== null; head = this.head) {
      if (head.kind === 'CopyData' || head.kind === 'CopyEnd') {
        this.#shift();
      } else if (head.action === 'synthesize') {
        this.#shift();
        if (head.reply !== null) this.#emit(head.owner, head.reply);
        head.note?.done?.();
      } else {
        return;
      }
    }
  }

  /** An extended request failed: the server skips what follows, up to the first Sync. */
  #dropUntilSync(failed: Entry<Owner>): void {
    const dropped = [failed];
    while (this.head !== null && this.head.kind !== 'Sync' && this.head.kind !== 'Resync') dropped.push(this.#shift());
    if (this.head === null) {
      this.isDiscarding = true;
      this.isBatchOpen = false;
    }
    for (const entry of dropped.reverse()) entry.note?.dropped?.(entry !== failed);
  }

  /** COPY FROM STDIN begins: what was sent behind it up to CopyEnd is read inside the COPY, where Sync is ignored. */
  #beginCopyIn(): void {
    this.isCopyIn = true;
    this.#hasCopyData = false;
    this.#isCopyEnded = false;
    const kept: Entry<Owner>[] = [this.head!];
    for (let at = this.#read + 1; at < this.#queue.length; at++) {
      const entry = this.#queue[at]!;
      if (this.#isCopyEnded) kept.push(entry);
      else if (entry.kind === 'CopyEnd') this.#isCopyEnded = true;
      else if (entry.kind === 'CopyData') this.#hasCopyData = true;
      else if (entry.kind === 'Sync') {
        this.#readies--;
        this.#hasLooseSync ||= this.#hasCopyData;
      } else kept.push(entry);
    }
    this.#queue = kept;
    this.#read = 0;
    // A Sync that was ignored closes nothing: the batch is open until the next one.
    if (this.head!.kind === 'Execute' && this.#readies === 0) this.isBatchOpen = true;
  }
}

function isAsynchronous(type: number): boolean {
  return type === ServerMessage.NoticeResponse || type === ServerMessage.ParameterStatus;
}

function endsWithReady(kind: RequestKind): boolean {
  return kind === 'Sync' || kind === 'Query' || kind === 'FunctionCall' || kind === 'Resync';
}

/** How a reply moves the request at the head: it stays, is done, or has failed (or the reply does not fit). */
type Ending = 'stays' | 'done' | 'failed';

/** What is left of a note that has been told of the end. */
function withoutEnd(note: Note | null): Note | null {
  if (note === null) return null;
  const rest: Note = {};
  if (note.message !== undefined) rest.message = note.message.bind(note);
  if (note.replaceError !== undefined) rest.replaceError = note.replaceError.bind(note);
  if (note.ready !== undefined) rest.ready = note.ready.bind(note);
  if (note.errorIsForward !== undefined) rest.errorIsForward = note.errorIsForward;
  return rest;
}

/** How a reply of `type`, not an error, moves a request of `kind`: it stays at the head, is done, or does not fit. */
function ending(kind: RequestKind, type: number): Ending {
  switch (kind) {
    case 'Query':
    case 'FunctionCall':
      return type === ServerMessage.ReadyForQuery ? 'done' : 'stays';
    case 'Sync':
      return type === ServerMessage.ReadyForQuery ? 'done' : 'failed';
    case 'Parse':
      return type === ServerMessage.ParseComplete ? 'done' : 'failed';
    case 'Bind':
      return type === ServerMessage.BindComplete ? 'done' : 'failed';
    case 'Close':
      return type === ServerMessage.CloseComplete ? 'done' : 'failed';
    case 'Describe':
      if (type === ServerMessage.ParameterDescription) return 'stays';
      return type === ServerMessage.RowDescription || type === ServerMessage.NoData ? 'done' : 'failed';
    case 'Execute':
      return endingOfExecute(type);
    case 'Begin':
      return endingOfBegin(type);
    case 'CopyData':
    case 'CopyEnd':
    case 'Resync': // See beginResync.
      return 'failed';
    default:
      return kind satisfies never;
  }
}

function endingOfBegin(type: number): Ending {
  switch (type) {
    case ServerMessage.ParseComplete:
    case ServerMessage.BindComplete:
    case ServerMessage.CommandComplete:
      return 'stays';
    case ServerMessage.CloseComplete:
      return 'done';
    default:
      return 'failed';
  }
}

function endingOfExecute(type: number): Ending {
  switch (type) {
    case ServerMessage.DataRow:
    case ServerMessage.CopyData:
    case ServerMessage.CopyDone:
    case ServerMessage.CopyInResponse:
    case ServerMessage.CopyOutResponse:
    case ServerMessage.CopyBothResponse:
      return 'stays';
    case ServerMessage.CommandComplete:
    case ServerMessage.PortalSuspended:
    case ServerMessage.EmptyQueryResponse:
      return 'done';
    default:
      return 'failed';
  }
}
