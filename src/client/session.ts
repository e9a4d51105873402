/**
 * One client, from its login to its end: THE data path. Made by client/listener.
 *
 *     socket → FrameReader → (no server? lease one, give it this client's settings) → Requests → server
 *     server → deliver → socket;   at the last ReadyForQuery: settle what must be settled, give the server back
 *
 *     idle ──short read──▶ sharing ──▶ idle                              (server/line)
 *     idle ──first message──▶ waiting ──lease──▶ syncing ──settings fit──▶ active ──▶ settling ──▶ idle
 *                                │                                           ▲           │
 *                                └─refused: one error, skip to Sync─▶ idle   └──pinned───┘
 *
 * The one idea: the session holds a server exactly as long as the server owes it something or keeps something for it;
 * protocol/outstanding says when the first is over, pins when the second is.
 *
 * Invariants: what the client sends is handled in order, and not at all while the state says to wait; memory per
 * session is bounded, because the side that is ahead is not read; a bug ends this session and nothing else.
 */
import type net from 'node:net';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, type Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, readErrorFields, ServerMessage, Status } from '../protocol/messages.ts';
import type { Note } from '../protocol/outstanding.ts';
import { error, fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { CANCEL_MS, type ServerConnection } from '../server/connection.ts';
import type { Line, Rider } from '../server/line.ts';
import type { ServerPool, Waiter } from '../server/pool.ts';
import { type Settings, settingsDiff } from '../server/settings.ts';
import type { PinReason } from '../sql/effects.ts';
import { effectsOf, type Judge, type Verdict } from '../sql/verdict.ts';
import type { Chain } from '../util/chain.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { sharedReads } from '../util/intake.ts';
import { Outbox } from '../util/outbox.ts';
import { type Block, blockFailed, FAIL, moveOf, statusOf } from './block.ts';
import type { Cancelable, CancelKey } from './cancel.ts';
import { linger } from './linger.ts';
import { overdue } from './overdue.ts';
import type { Read } from './read.ts';
import { clientWants, type RequestHost, Requests } from './request.ts';
import { settleNote, settleQuery } from './settle.ts';
import { Ties } from './ties.ts';

export type SessionState =
  /** No server; nothing asked. */
  | 'idle'
  /** In the pool's queue; the first message is kept in `#held`. */
  | 'waiting'
  /** The server is being given this client's settings. */
  | 'syncing'
  /** A read of its rides on a server with those of others. */
  | 'sharing'
  /** The server works for this client. */
  | 'active'
  /** The client has its answer; the server is asked what is left of the transaction. */
  | 'settling'
  | 'closed';

/** What all sessions have in common. */
export interface SessionHouse {
  judge: Judge;
  clock: Clock;
  onEnd: (session: Session) => void;
  onBug: (where: string, thrown: unknown) => void;
}

export interface SessionOptions {
  id: number;
  socket: net.Socket;
  user: string;
  key: CancelKey;
  pool: ServerPool;
  settings: Settings;
  /** Bytes of the largest message. */
  messageMax: number;
  house: SessionHouse;
}

/** Bytes kept from a client that is ahead of its server, beyond which it is not read. */
const INPUT_MAX = 128 * 1024;
/** Bytes kept for a client that does not read; see also the listener's high-water mark. */
const OUTPUT_MAX = 256 * 1024;
/** The longest value of a setting that is tracked, in bytes; a longer one pins. */
const VALUE_MAX = 16 * 1024;
/** Entries that a server may owe before the client is not read. */
const OUTSTANDING_MAX = 4096;
/** Bytes kept for a client that does not read while others wait behind it on the same server: more, and it is ended. */
const RIDER_OUTPUT_MAX = 1024 * 1024;
const frame = emptyFrame();

export class Session implements Waiter, RequestHost, Rider, Cancelable {
  chain: Chain<Waiter> | null = null;
  before: Waiter | null = null;
  behind: Waiter | null = null;
  waitingSince = 0;

  readonly id: number;
  readonly user: string;
  readonly key: CancelKey;
  readonly pool: ServerPool;
  readonly socket: net.Socket;
  /** What this client's session is set to, and what it was at its start, to which RESET leads back. */
  settings: Settings;
  readonly #startup: Settings;
  state: SessionState = 'idle';
  server: ServerConnection | null = null;
  /** What its request rides on, in state 'sharing'. */
  #line: Line | null = null;
  /** Bytes that the client has been given. */
  delivered = 0;
  /** The read that the present lease is for, or is waited for: its cost is learned. */
  #read: Read | null = null;
  #deliveredBefore = 0;
  /** Wall-clock ms of the login; monotonic ms of the last change of state. */
  readonly connectedAt: number;
  changedAt: number;

  readonly #house: SessionHouse;
  readonly #requests: Requests;
  readonly #reader: FrameReader;
  readonly #outbox: Outbox;
  /** The message that must wait for something before it is handled (again). */
  #held: Frame | null = null;
  /** Waiting for an injected request that the held message needs. */
  #isBlocked = false;
  /** RESET was sent: what follows waits until this client's own defaults are in force again. */
  #isHolding = false;
  /** The status of a ReadyForQuery that the client is given at the end of the hold; 0: none. */
  #keptStatus = 0;
  /** Terminate (or a violation) has come; what was sent before it is being answered. */
  #isTerminating = false;
  #lastWord: Refusal | null = null;
  /** A batch was refused: everything up to Sync is skipped. */
  #isSkipping = false;
  #isPaused = false;
  /** What ties it to its server; null until a statement first has an effect. */
  #ties: Ties | null = null;
  /** Monotonic ms since when the server owes something, or 0. */
  #workingSince = 0;
  #leasedAt = 0;
  /** Monotonic ms when the transaction that is open, or was last, began. */
  #beganAt = 0;
  #canceledAt = 0;
  /** A transaction that is open for the client only: no server knows of it (client/block). */
  #block: Block = 'none';
  /** Cancelled before its request reached a server. */
  #isCancelWanted = false;

  constructor(options: SessionOptions) {
    this.#house = options.house;
    this.id = options.id;
    this.user = options.user;
    this.key = options.key;
    this.pool = options.pool;
    this.socket = options.socket;
    this.settings = options.settings;
    this.#startup = options.settings;
    this.connectedAt = options.house.clock.wall();
    this.changedAt = options.house.clock.now();
    this.#requests = new Requests(this, options.house.judge);
    this.#reader = new FrameReader(clientWants, options.messageMax);
    this.#outbox = new Outbox(options.socket);
  }

  /** Begins to serve; `rest` is what the client has sent since its login. */
  start(rest: Buffer): void {
    const socket = this.socket as ClientSocket;
    socket.session = this;
    socket.on('data', onData).on('drain', onDrain).on('error', onError).on('end', onEnd).on('close', onEnd);
    if (rest.length > 0) this.receive(rest);
    if (!this.#isPaused) this.socket.resume();
  }

  /** The client has sent something. */
  receive(chunk: Buffer): void {
    this.#guard('data', () => this.#onData(chunk));
  }

  /** The client reads again. */
  onDrain(): void {
    this.#guard('drain', () => {
      this.server?.resume();
      this.#pump();
    });
  }

  /** The client has gone. */
  onGone(): void {
    this.#guard('end', () => this.#leave());
  }

  get database(): string {
    return this.pool.database;
  }

  get counts() {
    return this.pool.counts;
  }

  get statements() {
    return this.pool.statements;
  }

  get reads() {
    return this.pool.reads;
  }

  get pins(): readonly PinReason[] {
    return this.#ties?.pins ?? [];
  }

  get preparedCount(): number {
    return this.#requests.preparedCount;
  }

  /** The server that works for it, alone or with others. */
  get workingServer(): ServerConnection | null {
    return this.server ?? this.#line?.server ?? null;
  }

  get isWaiting(): boolean {
    return this.state === 'waiting';
  }

  /** A transaction is open, on its server or for the client only. */
  get isInTransaction(): boolean {
    return this.server === null ? this.#block !== 'none' : !this.server.outstanding.isFree;
  }

  // --- From the client ------------------------------------------------------------------------------------------

  #onData(chunk: Buffer): void {
    if (this.state === 'closed') return;
    this.#reader.push(chunk);
    this.#pump();
  }

  /** Handles what the client has sent, as far as the state allows. */
  #pump(): void {
    while (this.#isReady()) {
      if (this.#held !== null) {
        const held = this.#held;
        this.#held = null;
        this.#handle(held);
        continue;
      }
      const found = this.#reader.next(frame);
      if (found === 'starved') break;
      if (found !== 'frame') {
        this.#end(
          found === 'badLength'
            ? fatal(SqlState.ProtocolViolation, 'invalid message length')
            : fatal(SqlState.ProgramLimit, 'the message is too large', { hint: 'the limit is listen.messageMax' }),
        );
        return;
      }
      this.#handle(frame);
    }
    // Clients work on while we read the rest of this turn; servers get what all of it has for them.
    this.#outbox.flush();
    this.#readOrPause();
  }

  /** May the next message be handled? */
  #isReady(): boolean {
    if (this.#isBlocked || this.#isHolding || this.#isTerminating || this.#outbox.pending > OUTPUT_MAX) return false;
    switch (this.state) {
      case 'idle':
        return true;
      case 'active':
        return this.server!.isWritable && this.server!.outstanding.size < OUTSTANDING_MAX;
      default:
        return false;
    }
  }

  /** Reads on, unless the client is too far ahead. While it is read, its leaving is noticed. */
  #readOrPause(): void {
    if (this.state === 'closed') return;
    const isAhead =
      !this.#isReady() && this.#reader.pending + (this.#held?.end ?? 0) - (this.#held?.start ?? 0) > INPUT_MAX;
    const isStuck = this.state === 'active' && !this.server!.isWritable;
    const mustPause = isAhead || isStuck || this.socket.writableLength > OUTPUT_MAX;
    if (mustPause === this.#isPaused) return;
    this.#isPaused = mustPause;
    if (mustPause) this.socket.pause();
    else this.socket.resume();
  }

  #handle(message: Frame): void {
    if (this.#isSkipping && message.isStart) return this.#skip(message);
    if (this.server === null) return this.#handleIdle(message);
    const { server } = this;
    if (message.isStart && message.type === ClientMessage.Terminate) {
      // What was sent before is answered first.
      if (server.outstanding.size === 0) this.#leave();
      else this.#isTerminating = true;
      return;
    }
    const wasFree = server.outstanding.isFree;
    const handled = this.#requests.handle(message, server);
    if (this.#workingSince === 0 && server.outstanding.size > 0) {
      this.#workingSince = this.#house.clock.now();
      if (wasFree) this.#beganAt = this.#workingSince;
    }
    if (handled === 'again') this.#held = { ...message };
    else if (handled === 'refused') this.#refusePin(message);
    else if (handled !== 'done') {
      this.#lastWord = fatal(SqlState.ProtocolViolation, handled.bad);
      if (server.outstanding.size === 0) this.#end(this.#lastWord);
      else this.#isTerminating = true;
    }
  }

  /** A message while no server is held: most need one. */
  #handleIdle(message: Frame): void {
    if (!message.isStart) return; // The rest of a message that was skipped.
    if (this.pool.config.mode === 'transaction' && this.#answerBlock(message)) return;
    if (this.#block !== 'none') this.#read = null;
    else if (this.pool.config.share === 'auto' && this.#ride(message)) return;
    switch (message.type) {
      case ClientMessage.Terminate:
        return this.#leave();
      case ClientMessage.Sync:
        if (message.size === encode.sync.length) return void this.deliver(encode.readyForQuery(statusOf(this.#block)));
        break; // A body is wrong here: the server will say so.
      case ClientMessage.Flush:
      case ClientMessage.CopyData:
      case ClientMessage.CopyDone:
      case ClientMessage.CopyFail:
        return; // Nothing to flush; what is left of a COPY that failed is ignored ("COPY Operations").
      case ClientMessage.Parse:
      case ClientMessage.Close:
        if (this.#requests.answerAlone(message)) return;
        break;
      case ClientMessage.Query:
      case ClientMessage.Bind:
      case ClientMessage.Describe:
      case ClientMessage.Execute:
      case ClientMessage.FunctionCall:
        break;
      default:
        return this.#end(fatal(SqlState.ProtocolViolation, `invalid frontend message type ${message.type}`));
    }
    const leased = this.pool.lease(this);
    if (leased !== null && !('sqlstate' in leased) && this.#attach(leased)) return this.#handle(message);
    this.#held = { ...message };
    if (leased === null) this.#become('waiting');
    else if ('sqlstate' in leased) this.#refuse(leased);
  }

  /** Begins or ends a transaction without a server, or refuses what comes in one that has failed without one. */
  #answerBlock(message: Frame): boolean {
    if (this.settings.isOpaque) return false;
    const control = this.#requests.controlOf(message);
    const move = moveOf(this.#block, control, message.type);
    if (move === null) return false;
    if (move === 'refused') {
      this.#held = { ...message };
      this.#refuse(blockFailed());
      return true;
    }
    if (!this.#requests.answerControl(message, this.#reader, move.tag, statusOf(move.block))) return false;
    this.#block = move.block;
    this.changedAt = this.#house.clock.now();
    this.#beganAt = this.changedAt;
    return true;
  }

  /** A short read rides on a server with others, if there is one that suits. */
  #ride(message: Frame): boolean {
    this.#read = null;
    switch (message.type) {
      case ClientMessage.Query:
      case ClientMessage.Parse:
      case ClientMessage.Bind:
        break;
      default:
        return false;
    }
    // Of a text that cannot be read reliably nobody knows whether it is a read.
    const mayRide = this.pool.config.mode !== 'session' && !this.settings.isOpaque;
    this.#read = mayRide ? this.#requests.findRead(message, this.#reader) : null;
    const line = this.#read?.cost.isSmall ? this.pool.share(this, this.#read) : null;
    if (line === null) return false;
    this.#board(line, message);
    return true;
  }

  #board(line: Line, message: Frame): void {
    const { cost, rest } = this.#read!;
    this.#read = null;
    this.counts.shared++;
    this.#become('sharing');
    this.#line = line;
    line.board(this, cost);
    this.#requests.ride(message, rest, this.#reader, line.server);
  }

  /** The read that it waits with, if that may ride. */
  get wish(): Read | null {
    return this.#read?.cost.isSmall ? this.#read : null;
  }

  onBoard(line: Line): void {
    this.#guard('board', () => {
      const held = this.#held!;
      this.#held = null;
      this.#board(line, held);
    });
  }

  onRideEnd(): void {
    this.#guard('ride', () => {
      if (this.state === 'closed') return;
      this.#line = null;
      this.#become('idle');
      this.#pump();
    });
  }

  #skip(message: Frame): void {
    if (message.type === ClientMessage.Terminate) return this.#leave();
    if (message.type !== ClientMessage.Sync) return;
    this.#isSkipping = false;
    this.deliver(encode.readyForQuery(statusOf(this.#block)));
  }

  // --- Lease and settings ---------------------------------------------------------------------------------------

  onLease(server: ServerConnection): void {
    this.#guard('lease', () => {
      this.#attach(server);
      this.#pump();
    });
  }

  onRefused(refusal: Refusal): void {
    this.#guard('refusal', () => {
      this.#refuse(refusal);
      this.#pump();
    });
  }

  /** The held message is refused: one error, and for the extended protocol nothing more until Sync. */
  #refuse(refusal: Refusal): void {
    const held = this.#held;
    this.#held = null;
    if (refusal.severity === 'FATAL' || held === null) return this.#end(refusal);
    this.#become('idle');
    if (this.#block !== 'none') this.#block = 'failed';
    this.deliver(encode.errorResponse(refusal));
    const isExtended = held.type !== ClientMessage.Query && held.type !== ClientMessage.FunctionCall;
    if (isExtended) this.#isSkipping = true;
    else this.deliver(encode.readyForQuery(statusOf(this.#block)));
  }

  /** True: the server suits this client as it is. */
  #attach(server: ServerConnection): boolean {
    server.holder = this;
    this.server = server;
    this.#leasedAt = this.#house.clock.now();
    this.#deliveredBefore = this.delivered;
    const sql = settingsDiff(server.settings, this.settings, server.login);
    if (sql === null) {
      this.#begin(server);
      return true;
    }
    const isReset = sql[0]!.startsWith('RESET');
    this.#become('syncing');
    const wants = this.settings.custom;
    let failure: Buffer | null = null;
    server.ask(sql.join('; '), this, {
      message: (type, bytes) => {
        if (type === ServerMessage.ErrorResponse) failure ??= bytes;
      },
      done: () => {
        server.settings = this.pool.book.intern(server.settings.reported, wants);
        this.#begin(server);
      },
      dropped: () => this.#onSyncFailed(failure, isReset),
    });
    return false;
  }

  /**
   * The server would not take the settings that the client asked for: as at a login, that is the end. If it was to give
   * up somebody else's first, that may be the reason: then another server is tried.
   */
  #onSyncFailed(failure: Buffer | null, isReset: boolean): void {
    const { server } = this;
    if (server === null) return; // Lost meanwhile.
    server.isDoomed = true;
    if (isReset) {
      this.server = null;
      server.holder = null;
      this.#become('waiting');
      server.close('its settings could not be changed');
      const leased = this.pool.lease(this);
      if (leased === null) return;
      if ('sqlstate' in leased) this.#refuse(leased);
      else this.#attach(leased);
      return;
    }
    const fields = failure === null ? new Map<string, string>() : new Map(readErrorFields(failure.subarray(5)));
    fields.set('S', 'FATAL').set('V', 'FATAL');
    this.#endWith(encode.errorFields(fields));
  }

  /** The server has this client's settings: tell the client what differs from what it was told, and go on. */
  #begin(server: ServerConnection): void {
    this.#adopt(server);
    this.#become('active');
    this.#checkEncoding();
    if (this.pool.config.mode === 'session') this.#tied.pin('session');
    if (this.#isCancelWanted) {
      this.#isCancelWanted = false;
      this.#giveBack();
      this.#refuse(canceled());
    } else if (this.#block !== 'none') this.#open(server, this.#block);
  }

  /** The server learns of the transaction that the client is in. */
  #open(server: ServerConnection, block: Exclude<Block, 'none'>): void {
    this.#block = 'none';
    if (block === 'failed') server.ask(FAIL, this, null);
    else this.#requests.begin(block.sql, server);
    this.#workingSince = this.#house.clock.now();
  }

  /** The server's settings are this client's from here on: tell it of those that it has not been told of. */
  #adopt(server: ServerConnection): void {
    if (this.settings === server.settings) return;
    for (const [name, value] of server.settings.reported) {
      if (this.settings.reported.get(name) !== value) this.deliver(encode.parameterStatus(name, value));
    }
    this.settings = server.settings;
  }

  // --- From the server ------------------------------------------------------------------------------------------

  deliver(bytes: Buffer): boolean {
    if (this.state === 'closed') return true;
    this.delivered += bytes.length;
    this.#outbox.add(bytes);
    if (this.#outbox.pending > OUTPUT_MAX) this.#outbox.flush();
    // Only what the system has not taken counts: for that there will be a 'drain'.
    if (this.#line === null) return this.socket.writableLength <= OUTPUT_MAX;
    // Others are behind it: it is not waited for. What it is being sent may be half a message, so there is no last word.
    if (this.socket.writableLength > RIDER_OUTPUT_MAX) {
      this.socket.destroy();
      this.onGone();
    }
    return true;
  }

  get isDelivered(): boolean {
    return this.#outbox.pending === 0;
  }

  onProgress(): void {
    this.#guard('progress', () => {
      const { server } = this;
      if (server?.outstanding.isLost) return this.#onDesync(server);
      if (server?.outstanding.size === 0) this.#onQuiet(server);
      else if (server?.outstanding.isCopyOpen) this.#endHold(server); // What was held is for the COPY to judge.
      this.#pump();
    });
  }

  /** A reply came that fits nothing: what would follow could be anybody's. */
  #onDesync(server: ServerConnection): void {
    server.isDoomed = true;
    this.#tied.pin('desync');
    this.#end(
      fatal(SqlState.InternalError, 'the server sent a reply that does not fit any request', { hint: 'connect again' }),
    );
  }

  /** The server owes nothing at the moment. */
  #onQuiet(server: ServerConnection): void {
    const { outstanding } = server;
    const ties = this.#ties;
    const now = this.#house.clock.now();
    // What was held waited for just this; in an open batch only the client can go on.
    if (this.#held !== null || outstanding.isBatchOpen || outstanding.isDiscarding) this.#endHold(server);
    if (this.#workingSince > 0) {
      this.counts.queryMs += now - this.#workingSince;
      this.#workingSince = 0;
      this.#canceledAt = 0;
      this.changedAt = now;
    }
    if (this.state !== 'active') return;
    if (this.#isTerminating) {
      this.#endHold(server);
      return this.#lastWord === null ? this.#leave() : this.#end(this.#lastWord);
    }
    if (!outstanding.isQuiet || this.#isBlocked || this.#held !== null || this.#reader.isInside) return;
    if (outstanding.status !== Status.Idle) {
      if (ties?.hasResets && outstanding.status === Status.Transaction) return this.#settle(server);
      this.#endHold(server);
      if (this.pool.config.mode === 'statement') this.#refuseTransaction();
      return;
    }
    if (!server.isFree || (ties !== null && ties.pendingVerdicts > 0)) return;
    if (ties?.isQuestion) return this.#settle(server);
    this.#endHold(server);
    if (!ties?.isPinned) this.#giveBack();
  }

  #refuseTransaction(): void {
    this.#end(
      fatal(SqlState.FeatureNotSupported, 'transaction blocks are not allowed in statement pooling mode', {
        hint: 'use pool.mode transaction',
      }),
    );
  }

  #giveBack(): void {
    const server = this.server!;
    const elapsed = this.#house.clock.now() - this.#leasedAt;
    this.counts.transactionMs += elapsed;
    this.#read?.cost.add(elapsed, this.delivered - this.#deliveredBefore);
    this.#read = null;
    this.server = null;
    const wasPinned = this.#ties?.wasPinned === true;
    this.#ties?.release();
    this.#ties = null;
    this.#become('idle');
    if (wasPinned) this.pool.recover(server, true);
    else this.pool.giveBack(server);
  }

  onWritable(): void {
    this.#guard('writable', () => this.#pump());
  }

  onParameter(name: string, value: string): void {
    this.settings = this.pool.book.withReported(this.settings, name, value);
    this.#checkEncoding();
  }

  /** Texts that cannot be read reliably may have any effect. */
  #checkEncoding(): void {
    if (this.settings.isOpaque) this.#tied.pin('encoding');
  }

  onTag(tag: string): void {
    // Plans of what DDL has changed are made anew for whoever prepares from here on.
    if (tag.startsWith('ALTER ') || tag.startsWith('DROP ')) this.pool.statements.forgetAll();
    if (tag !== 'DISCARD ALL' && tag !== 'DEALLOCATE ALL') return;
    this.#requests.forgetNames();
    if (tag === 'DEALLOCATE ALL') return;
    this.#tied.discardAll(this.settings);
  }

  /** The server is gone, and with it whatever it was doing or keeping for this client. */
  onLost(reason: string, isTold: boolean): void {
    const { server } = this;
    this.#guard('lost', () => {
      this.server = null;
      this.#line = null;
      if (this.state === 'closed') return;
      this.#ties?.release();
      if (isTold) return this.#leave();
      const isUnknown = server !== null && server.outstanding.size > 0 && this.#requests.isCommitting;
      this.#end(
        isUnknown
          ? fatal(
              SqlState.TransactionResolutionUnknown,
              'the server was lost during COMMIT: whether it took effect is not known',
              {
                detail: reason,
                hint: 'check before doing it again',
              },
            )
          : fatal(SqlState.AdminShutdown, 'terminating connection: the server was lost', {
              detail: reason,
              hint: 'connect again',
            }),
      );
    });
  }

  /** The message would pin this client, and pool.pinnedMax is reached: nothing of it has been sent. */
  #refusePin(message: Frame): void {
    const held = { ...message }; // The frame is shared by all sessions, and giving back may run another one.
    const { pinned } = this.pool;
    this.#giveBack();
    this.#held = held;
    this.#refuse(
      this.pool.refuse('pinned', `it would pin a server, and ${pinned} are pinned already (pool.pinnedMax)`),
    );
  }

  get isFresh(): boolean {
    return this.server!.isFree && (this.#ties === null || this.#ties.isClean);
  }

  mayRun(verdict: Verdict): boolean {
    if (verdict.effects === null && verdict.shape === null) return true;
    const effects = verdict.shape?.state === 'known' ? effectsOf(verdict, this.pool.catalog) : verdict.effects;
    if (effects === null || !(effects.isProbed || effects.pins.length > 0)) return true;
    if (this.isFresh && !this.#tied.isCounted && this.pool.pinned >= this.pool.pinnedMax) return false;
    this.#tied.count();
    return true;
  }

  get #tied(): Ties {
    this.#ties ??= new Ties(this.pool, this.#startup);
    return this.#ties;
  }

  get planSettings(): string {
    return this.settings.planKey;
  }

  // --- Effects and pins -----------------------------------------------------------------------------------------

  block(): void {
    this.#isBlocked = true;
  }

  unblock(): void {
    this.#isBlocked = false;
  }

  hold(): void {
    this.#isHolding = true;
  }

  keepReady(status: number): void {
    this.#keptStatus = status;
  }

  #endHold(server: ServerConnection): void {
    this.#isHolding = false;
    if (this.#keptStatus === 0) return;
    this.#adopt(server);
    this.#checkEncoding();
    this.deliver(encode.readyForQuery(this.#keptStatus));
    this.#keptStatus = 0;
  }

  get isPinned(): boolean {
    return this.#ties?.isPinned === true;
  }

  onRan(verdict: Verdict, isOk: boolean): void {
    if (verdict.shape?.state !== 'pending') return this.#onVerdict(verdict, isOk);
    this.#tied.pendingVerdicts++;
    verdict.shape.waiting.push(() => {
      this.#tied.pendingVerdicts--;
      this.#onVerdict(verdict, isOk);
      this.onProgress();
    });
  }

  #onVerdict(verdict: Verdict, isOk: boolean): void {
    if (this.state === 'closed') return;
    const effects = effectsOf(verdict, this.pool.catalog);
    // What has failed may have been committed in part, or not be undone by rollback; but what no parser takes, no
    // server has run.
    const isRejected = !isOk && verdict.shape?.isUnparsed === true;
    if (effects !== null && !isRejected) this.#tied.absorb(effects, this.settings);
  }

  /**
   * Asks the server what the transaction has left behind, and makes it so for this client and this server. Inside a
   * transaction only RESET is looked after: whatever is set there may yet be rolled back.
   */
  #settle(server: ServerConnection): void {
    const isOver = server.outstanding.status === Status.Idle;
    const question = this.#tied.takeQuestion(isOver);
    const note = settleNote(question, (findings) => {
      if (this.server === null) return;
      this.#become('active');
      if (findings === null) return this.#tied.pin('setting');
      if (isOver) {
        const asked = question.settings.map((name, index) => [name, findings.values[index]!] as const);
        // What is too large to keep and to replay stays where it is.
        const changes = asked.filter(([, value]) => (value?.length ?? 0) <= VALUE_MAX);
        if (changes.length < asked.length) this.#tied.pin('setting');
        server.settings = this.pool.book.withCustom(server.settings, changes);
      }
      this.#tied.answer(findings);
      if (findings.defaults.length === 0 || !this.#restore(server, findings.defaults)) this.#adopt(server);
    });
    this.#ask(server, [settleQuery(question)], note);
  }

  /**
   * These settings are at the server's default, by RESET: give them this client's default, what it asked for at startup.
   * False: they are as they should be.
   */
  #restore(server: ServerConnection, names: readonly string[]): boolean {
    const { book } = this.pool;
    const custom = [...this.#startup.custom].filter(([name]) => names.includes(name));
    const reported = [...this.#startup.reported].filter(([name]) => names.includes(name.toLowerCase()));
    // What is known of the server may be older than the RESET: without these names it is right either way.
    const has = book.withCustom(
      server.settings,
      custom.map(([name]) => [name, null] as const),
    );
    const wants = book.withCustom(
      reported.reduce((all, [name, value]) => book.withReported(all, name, value), has),
      custom,
    );
    const sql = settingsDiff(has, wants, server.login);
    if (sql === null) return false;
    this.#ask(server, sql, {
      done: () => {
        if (this.server === null) return;
        if (server.outstanding.status === Status.Idle)
          server.settings = book.intern(server.settings.reported, wants.custom);
        this.#adopt(server);
        this.#become('active');
      },
      dropped: () => {
        if (this.server === null) return;
        this.#become('active');
        this.#tied.pin('setting');
      },
    });
    return true;
  }

  #ask(server: ServerConnection, statements: readonly string[], note: Note): void {
    this.#become('settling');
    if (server.outstanding.status === Status.Idle) server.ask(statements.join('; '), this, note);
    else server.askAside(statements, this, note);
  }

  // --- Cancel, time, end ----------------------------------------------------------------------------------------

  /** A CancelRequest with this session's key arrived. */
  cancel(): void {
    this.#guard('cancel', () => {
      switch (this.state) {
        case 'waiting':
          this.pool.leave(this);
          this.#refuse(canceled());
          this.#pump();
          break;
        case 'syncing':
          this.#isCancelWanted = true;
          break;
        case 'sharing':
          this.#line!.cancel(this);
          break;
        case 'active':
          if (this.server!.outstanding.size > 0) this.server!.cancel(this);
          break;
        default: // Nothing runs.
      }
    });
  }

  /** Ends what has taken too long. Called by client/listener every fraction of a second. */
  tick(now: number): void {
    const { server } = this;
    if (server === null && this.state !== 'idle') return; // A rider is its line's affair, a waiter the pool's.
    const found = overdue(
      this.pool.config,
      {
        isIdle: server === null,
        isInTransaction: this.isInTransaction,
        workingSince: this.#workingSince,
        changedAt: this.changedAt,
        beganAt: this.#beganAt,
      },
      now,
    );
    if (found === 'query') this.#stopQuery(server!, now);
    else if (found !== null) this.#end(found);
  }

  #stopQuery(server: ServerConnection, now: number): void {
    if (this.#canceledAt === 0) {
      this.#canceledAt = now;
      server.cancel(this);
    } else if (now - this.#canceledAt > CANCEL_MS)
      server.close('a statement beyond pool.queryMax did not react to its cancel request');
  }

  /** Drain: a client without a transaction is told to go (57P01); one with a transaction may finish it. */
  drain(): boolean {
    if (this.state !== 'idle' && this.isInTransaction) return false;
    if (['waiting', 'syncing', 'settling', 'sharing'].includes(this.state)) return false;
    this.end('terminating connection due to administrator command');
    return true;
  }

  /** Ends the session with FATAL 57P01. */
  end(message: string): void {
    this.#guard('end', () => this.#end(fatal(SqlState.AdminShutdown, message)));
  }

  #end(refusal: Refusal): void {
    this.#endWith(encode.errorResponse(refusal));
  }

  #endWith(bytes: Buffer): void {
    if (this.state === 'closed') return;
    this.deliver(bytes);
    this.#outbox.flush();
    this.socket.end();
    this.#leave();
  }

  /**
   * The client is gone or going: leave the queue, give back the server in a state that others can use. What it sent
   * before Terminate runs to its end, as on a server of its own; what it left without a word is cancelled.
   */
  #leave(): void {
    if (this.state === 'closed') return;
    const isTerminated = this.#isTerminating;
    const { server } = this;
    const isMidMessage = this.#reader.isInside && !this.#isSkipping;
    const ties = this.#ties;
    const isDiscardWanted = (ties !== null && (!ties.isClean || ties.wasPinned)) || (server?.outstanding.size ?? 0) > 0; // What has not been answered may yet have an effect.
    const isSpent =
      isMidMessage || this.state === 'syncing' || (ties !== null && (ties.has('load') || ties.has('desync')));
    if (this.state === 'waiting') this.pool.leave(this);
    this.#line?.abandon(this);
    this.#line = null;
    this.#become('closed');
    this.server = null;
    this.#held = null;
    ties?.release();
    this.#requests.close();
    if (server !== null) {
      if (isSpent) {
        server.holder = null;
        server.close('the client left it in a state that nobody else can use');
      } else if (server.isFree && !isDiscardWanted) this.pool.giveBack(server);
      else this.pool.recover(server, isDiscardWanted, isTerminated);
    }
    this.#outbox.flush();
    if (!this.socket.writableEnded) this.socket.end();
    linger(this.socket, this.#house.clock);
    this.#house.onEnd(this);
  }

  #become(state: SessionState): void {
    this.state = state;
    this.changedAt = this.#house.clock.now();
  }

  /** A bug ends the session, never the process. */
  #guard(where: string, run: () => void): void {
    try {
      run();
    } catch (thrown) {
      this.#house.onBug(where, thrown);
      if (this.server !== null) this.server.isDoomed = true;
      // What it has sent there may be half a request: whoever else is on that server must not wait for its end.
      this.#line?.server.close('a bug in the proxy');
      try {
        this.#end(fatal(SqlState.InternalError, `internal error in the proxy: ${messageOf(thrown)}`));
      } catch {
        this.state = 'closed';
        this.socket.destroy();
      }
    }
  }
}

/** Listeners are functions that all sessions share: closures of its own would cost each idle client a quarter KiB. */
type ClientSocket = net.Socket & { session: Session };

function onData(this: net.Socket, chunk: Buffer): void {
  (this as ClientSocket).session.receive(chunk);
}

/** For sockets that do not emit 'data'. */
export const sessionReads = sharedReads(onData);

function onDrain(this: net.Socket): void {
  (this as ClientSocket).session.onDrain();
}

function onEnd(this: net.Socket): void {
  (this as ClientSocket).session.onGone();
}

function onError(): void {}

function canceled(): Refusal {
  return error(SqlState.QueryCanceled, 'canceling statement due to user request');
}
