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
import type { Fill } from '../cache/flight.ts';
import type { Shed } from '../guard/queue.ts';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, type Frame } from '../protocol/frame.ts';
import { ClientMessage, Status } from '../protocol/messages.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { ServerConnection } from '../server/connection.ts';
import type { Line, Rider } from '../server/line.ts';
import type { ServerPool, Waiter } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { PinReason } from '../sql/effects.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Chain } from '../util/chain.ts';
import { messageOf } from '../util/errors.ts';
import type { Read } from './alone.ts';
import { blockFailed } from './block.ts';
import { type CachedClient, CachedReads, type Rest } from './cached.ts';
import type { Cancelable, CancelKey } from './cancel.ts';
import { ClientConnection, INPUT_MAX, type SocketOwner } from './connection.ts';
import type { SessionHouse, SessionOptions } from './house.ts';
import { canceled, desynced, noTransactions, serverLost, tooManyNotifications, unknownMessage } from './lastwords.ts';
import { Lease, type Lessee } from './lease.ts';
import { type Answer, type Form, findQuestion, piecesOf } from './question.ts';
import { Requests } from './request.ts';
import type { RequestHost } from './request-host.ts';
import { carryOut, maySignal, signalAnswer, signalDenied, signalIn, targetOf } from './signal.ts';
import { isAnswerDue, isHeldUp, isInQueue, type SessionState } from './state.ts';
import { hearsAs, Subscriber, type SubscriberClient } from './subscriber.ts';
import { type Inputs, partyOf, statementTimeoutOf, Turn, type TurnClient } from './turn.ts';
import { Work, type WorkClient } from './work.ts';

/** Entries that a server may owe before the client is not read. */
const OUTSTANDING_MAX = 4096;
const frame = emptyFrame();

export class Session
  implements
    Waiter,
    RequestHost,
    Lessee,
    Rider,
    TurnClient,
    Cancelable,
    SubscriberClient,
    CachedClient,
    SocketOwner,
    WorkClient
{
  chain: Chain<Waiter> | null = null;
  before: Waiter | null = null;
  behind: Waiter | null = null;
  waitingSince = 0;
  heldBytes = 0;

  readonly id: number;
  readonly user: string;
  readonly key: CancelKey;
  readonly pool: ServerPool;
  /** Its hold on a server. */
  readonly lease: Lease;
  /** What this client's session is set to. */
  settings: Settings;
  state: SessionState = 'idle';
  /** What its request rides on, in state 'sharing'. */
  #line: Line | null = null;
  /** The read that the present lease is for, or is waited for: its cost is learned. */
  #read: Read | null = null;
  /** Wall-clock ms of the login; monotonic ms of the last change of state. */
  readonly connectedAt: number;
  changedAt: number;

  readonly #house: SessionHouse;
  readonly #requests: Requests;
  readonly #work: Work;
  readonly #connection: ClientConnection;
  /** The message that must wait for something before it is handled (again). */
  #held: Frame | null = null;
  /** Waiting for an injected request that the held message needs. */
  #isBlocked = false;
  /** Terminate (or a violation) has come; what was sent before it is being answered. */
  #isTerminating = false;
  #lastWord: Refusal | null = null;
  /** A batch was refused: everything up to Sync is skipped. */
  #isSkipping = false;
  /** Its way through the gate; null while admission is off. */
  #turn: Turn | null = null;
  readonly #wantedClass: string;
  /** Lets it out of the tarpit without a word. */
  #leaveTarpit: (() => void) | null = null;
  /** What it listens to by the connection that listens for all; null: it never has. */
  #subscriber: Subscriber | null = null;
  /** Its way past the database; null: there is none. */
  #cached: CachedReads | null = null;
  /** Cancelled before its request reached a server. */
  #isCancelWanted = false;

  constructor(options: SessionOptions) {
    this.#house = options.house;
    this.id = options.id;
    this.user = options.user;
    this.key = options.key;
    this.pool = options.pool;
    this.settings = options.settings;
    this.connectedAt = options.house.clock.wall();
    this.changedAt = options.house.clock.now();
    this.#requests = new Requests(this, options.house.judge);
    this.lease = new Lease(this, this.#requests);
    this.#work = new Work(this, options.house);
    this.#connection = new ClientConnection(options.socket, options.messageMax);
    this.#wantedClass = options.wantedClass;
    this.onCacheChanged();
  }

  /** Its database has got a cache, has lost it, or may have. */
  onCacheChanged(): void {
    const { cacheOf, identities } = this.#house;
    const cache = cacheOf(this.pool);
    if (cache === (this.#cached?.cache ?? null)) return;
    this.#endFill();
    this.#cached =
      cache === null ? null : new CachedReads(this, cache, identities, this.#requests.alone, this.#connection.reader);
    // Of what its transaction has done so far nobody knows.
    if (this.server !== null) this.#cached?.written.addAll();
    if (this.state === 'fetching') this.onWaited();
  }

  /** This is no client's session, but asks what is to be kept as `fill`. */
  beginErrand(fill: Fill | null): void {
    if (fill !== null) return this.#cached?.adopt(fill);
    this.#cached = null;
  }

  /** Begins to serve: with `welcome`, then `rest`, which is what the client has sent since its login. */
  start(welcome: Buffer, rest: Buffer): void {
    this.#connection.listen(this);
    const { tarpit } = this.#house.admission;
    const delayMs = tarpit.hasLeavers ? tarpit.delayOfNewcomer(partyOf(this), this.#house.clock.now()) : 0;
    if (delayMs === 0) this.socket.write(welcome);
    else {
      this.become('delayed');
      this.#leaveTarpit = tarpit.hold(delayMs, 'reconnects', () =>
        this.#guard('welcome', () => this.#welcome(welcome)),
      );
    }
    if (rest.length > 0) this.receive(rest);
    this.#connection.startReading();
  }

  #welcome(bytes: Buffer): void {
    this.#leaveTarpit = null;
    this.socket.write(bytes);
    this.become('idle');
    this.#pump();
  }

  receive(chunk: Buffer): void {
    this.#guard('data', () => {
      if (this.state === 'closed') return;
      this.#connection.reader.push(chunk);
      this.#pump();
    });
  }

  onDrain(): void {
    this.#guard('drain', () => {
      this.server?.resume();
      this.#pump();
    });
  }

  onGone(): void {
    this.#guard('end', () => this.#leave());
  }

  get socket(): net.Socket {
    return this.#connection.socket;
  }

  get database(): string {
    return this.pool.database;
  }

  /** What the decision about its last request rests on; null: there was none to make. */
  get inputs(): Inputs | null {
    return this.#turn === null || this.#turn.className === '' ? null : this.#turn.inputs;
  }

  /** The server that works for it alone. */
  get server(): ServerConnection | null {
    return this.lease.server;
  }

  get pins(): readonly PinReason[] {
    return this.lease.pins;
  }

  get preparedCount(): number {
    return this.#requests.preparedCount;
  }

  get rank(): number {
    return this.#turn?.rank ?? 0;
  }

  /** The server that works for it, alone or with others. */
  get workingServer(): ServerConnection | null {
    return this.server ?? this.#line?.server ?? null;
  }

  /** Bytes that the client has been given. */
  get delivered(): number {
    return this.#connection.sent;
  }

  get isWaiting(): boolean {
    return isInQueue(this.state);
  }

  /** A transaction is open, on its server or for the client only. */
  get isInTransaction(): boolean {
    return this.server === null ? this.#requests.alone.isInBlock : !this.server.outstanding.isFree;
  }

  // --- From the client ------------------------------------------------------------------------------------------

  /** Handles what the client has sent, as far as the state allows. */
  #pump(): void {
    while (this.#isReady()) {
      if (this.#held !== null) {
        const held = this.#held;
        this.#held = null;
        this.#handle(held);
        continue;
      }
      const found = this.#connection.next(frame);
      if (found === 'starved') break;
      if (found !== 'frame') return this.#end(found);
      this.#handle(frame);
    }
    if (this.#subscriber?.hasNews) this.#tellNews();
    // Clients work on while we read the rest of this turn; servers get what all of it has for them.
    this.#connection.flush();
    this.#readOn();
  }

  /** May the next message be handled? */
  #isReady(): boolean {
    if (this.#isBlocked || this.#requests.isHolding || this.#isTerminating || this.#connection.isBehind) return false;
    switch (this.state) {
      case 'idle':
        return true;
      case 'active':
        return this.server!.isWritable && this.server!.outstanding.size < OUTSTANDING_MAX && !this.#isHeldBack;
      default:
        return false;
    }
  }

  /** Upkeep was let through without much ado, and a standby takes reads only: what comes behind them must ask for itself. */
  get #isHeldBack(): boolean {
    if (this.#turn?.isUpkeep !== true && !this.lease.isOfStandby) return false;
    const { outstanding } = this.server!;
    return outstanding.size > 0 && !outstanding.isBatchOpen;
  }

  /** Reads on, unless the client is too far ahead. */
  #readOn(): void {
    if (this.state === 'closed') return;
    const isAhead =
      !this.#isReady() &&
      this.#connection.reader.pending + (this.#held?.end ?? 0) - (this.#held?.start ?? 0) > INPUT_MAX;
    this.#connection.readOn(isAhead || (this.state === 'active' && !this.server!.isWritable));
  }

  #handle(message: Frame): void {
    if (this.#isSkipping && message.isStart) return this.#skip(message);
    if (this.server === null) return this.#handleIdle(message);
    const { server } = this;
    if (message.isStart && message.type === ClientMessage.Terminate) {
      // What was sent before is answered first.
      if (server.outstanding.size === 0) this.#leave();
      else this.#terminate(server);
      return;
    }
    const wasFree = server.outstanding.isFree;
    if (wasFree && message.isStart && this.lease.isPinned) {
      this.lease.rest();
      const verdict = this.#requests.alone.verdictOf(message);
      if (this.#answerSignal(message, verdict)) return;
    }
    if (message.isStart && this.#cached?.isFilling) this.#cached.noteSent();
    const handled = this.#requests.handle(message, server);
    if (!this.#work.isOn && server.outstanding.size > 0) {
      const now = this.#house.clock.now();
      this.#work.start(now);
      this.#turn?.work(now);
      if (wasFree) this.#work.begin(now);
    }
    // It is not read any further, and its Sync may be what the replies wait for.
    if (server.outstanding.size >= OUTSTANDING_MAX) server.askForReplies();
    if (handled === 'again') this.#held = { ...message };
    else if (handled === 'refused') this.#refusePin(message);
    else if (handled !== 'done') {
      this.#lastWord = fatal(SqlState.ProtocolViolation, handled.bad);
      if (server.outstanding.size === 0) this.#end(this.#lastWord);
      else this.#terminate(server);
    } else if (message.isEnd && !message.isStart && server.outstanding.size === 0) this.#onQuiet(server); // It kept the server.
  }

  /** The end comes when what was sent before is answered: no Sync will ask for that any more. */
  #terminate(server: ServerConnection): void {
    this.#isTerminating = true;
    server.askForReplies();
  }

  /** A message while no server is held: most need one. */
  #handleIdle(message: Frame): void {
    if (!message.isStart) return; // The rest of a message that was skipped.
    if (message.type === ClientMessage.Terminate) return this.#leave();
    const { alone } = this.#requests;
    const isTransactional = this.pool.config.mode === 'transaction' || alone.isInBlock;
    // Before anybody looks at the text: what the cache has was looked at when it was asked first.
    // Who has been admitted has asked it before: to wait for others now would keep a permit from them.
    const mayAsk =
      this.pool.config.mode !== 'session' && !this.#house.admission.isPassthrough && this.#turn?.isAdmitted !== true;
    if (this.#cached !== null && mayAsk && this.#answerCached(message, this.#cached)) return;
    const verdict = alone.verdictOf(message);
    if (isTransactional && (this.#answerBlock(message, verdict) || this.#answerListening(message, verdict))) return;
    if (this.#answerSignal(message, verdict)) return;
    // What is kept must be as new as its table's version says.
    const mayLag = !alone.isInBlock && this.#cached?.isFilling !== true;
    if (this.pool.replicas !== null && mayLag && this.#readElsewhere(message, verdict)) return;
    this.classify(message);
    alone.noteFirst(verdict);
    if (alone.isInBlock) this.#read = null;
    else if (this.pool.config.share === 'auto' && !this.#house.admission.isPassthrough && this.#ride(message)) return;
    const answered = alone.answer(message);
    if (answered === 'done') return;
    if (answered === 'bad') return this.#end(unknownMessage(message.type));
    if (this.#house.admission.isOn && this.#turn?.isAdmitted === false) {
      // To end what no server knows of is never refused.
      if (alone.isEnding(verdict)) this.#turn.admitOutright(this.#house.clock.now());
      else if (!this.#askForTurn(message)) return;
    }
    this.heldBytes = Math.min(message.size, INPUT_MAX);
    const leased = this.pool.lease(this);
    if (leased !== null && !('sqlstate' in leased) && this.#take(leased)) return this.#handle(message);
    this.#held = { ...message };
    if (leased === null) this.become('waiting');
    else if ('sqlstate' in leased) this.#refuseLate(leased);
  }

  /** False: it must wait, or is refused. */
  #askForTurn(message: Frame): boolean {
    const now = this.#house.clock.now();
    const asked = this.#turn!.ask(message, now);
    switch (asked.kind) {
      case 'admitted':
        return true;
      case 'waiting':
        this.#wait(message, 'queued', now);
        return false;
      default:
        this.#held = { ...message };
        this.#refuseShed(asked);
        return false;
    }
  }

  onAdmitted(): void {
    this.#guard('turn', () => {
      if (this.state !== 'queued') return this.#turn!.end(this.#house.clock.now()); // Too late: it has given up.
      this.become('idle');
      this.#pump();
      // What it waited with may have needed no server after all.
      if ((this.state as SessionState) === 'idle') this.#turn!.end(this.#house.clock.now());
    });
  }

  onShed(shed: Shed): void {
    this.#guard('turn', () => {
      if (this.state !== 'queued') return;
      this.#refuseShed(shed);
      this.#pump();
    });
  }

  /** The gate refuses the held message: now, or a little later when its client is hasty. */
  #refuseShed({ reason, delayMs }: Shed): void {
    const refusal = this.#turn!.refusalOf(reason);
    if (delayMs === 0) return this.#refuse(refusal);
    const noted = this.#noteRefused(refusal);
    this.become('delayed');
    this.#leaveTarpit = this.#house.admission.tarpit.hold(delayMs, 'retries', () => this.onRefused(noted));
  }

  /** The pool refuses the held message; while no primary can be reached everybody asks again, and nobody is to do so at once. */
  #refuseLate(refusal: Refusal): void {
    if (!this.pool.isUnreachable || this.#cached?.hasOld === true) return this.#refuse(refusal);
    const { admission, clock } = this.#house;
    const { tarpit } = admission;
    const noted = this.#noteRefused(refusal);
    this.#turn?.end(clock.now());
    this.become('delayed');
    this.#leaveTarpit = tarpit.hold(tarpit.delayOfOutage(), 'outage', () => this.onRefused(noted));
  }

  /** ms after which its client does not want the answer of the held message any more; 0: not known. */
  get deadline(): number {
    const { isOn } = this.#house.admission;
    return isOn && this.#turn !== null ? this.#turn.patienceMs : statementTimeoutOf(this.settings);
  }

  // --- Answered without a server --------------------------------------------------------------------------------

  /** Begins or ends a transaction without a server, or refuses what comes in one that has failed without one. */
  #answerBlock(message: Frame, verdict: Verdict | null): boolean {
    if (this.settings.isOpaque) return false;
    const answered = this.#requests.alone.answerBlock(message, verdict, this.#connection.reader);
    if (answered === 'no') return false;
    if (answered === 'refused') this.#refuseMessage(message, blockFailed());
    else {
      this.changedAt = this.#house.clock.now();
      this.#work.begin(this.changedAt);
    }
    return true;
  }

  /** pg_cancel_backend or pg_terminate_backend of one of our clients. */
  #answerSignal(message: Frame, verdict: Verdict | null): boolean {
    if (verdict?.effects?.isSignal !== true) return false;
    const question = findQuestion(message, this.#connection.reader, this.#requests.alone);
    const signal = question === null ? null : signalIn(question);
    const target = signal === null ? null : targetOf(signal, this, this.#house.holderOf);
    if (question === null || signal === null || target === null) return false;
    if (!maySignal(this, target)) {
      this.#fail(message, signalDenied(signal));
      return true;
    }
    this.#answerWhole(message, signalAnswer(signal), question);
    carryOut(signal, target);
    return true;
  }

  /** The request that begins with `message` fails by our own judgement, with a server or without. */
  #fail(message: Frame, refusal: Refusal): void {
    const { alone } = this.#requests;
    alone.fail(message, this.#connection.reader);
    this.deliver(encode.errorResponse(refusal));
    const isExtended = message.type !== ClientMessage.Query && message.type !== ClientMessage.FunctionCall;
    if (isExtended) this.#isSkipping = true;
    else this.deliver(encode.readyForQuery(alone.status));
  }

  /** The cache has the answer, or will have it. */
  #answerCached(message: Frame, cached: CachedReads): boolean {
    const asked = cached.ask(message, this.#requests.alone.block, this.#house.clock.now());
    switch (asked.kind) {
      case 'go':
        return false;
      case 'answer':
        this.#answerWhole(message, asked.entry, asked.form);
        this.changedAt = this.#house.clock.now();
        return true;
      case 'wait':
        this.#wait(message, 'fetching');
        return true;
      case 'refuse':
        this.#refuseMessage(message, asked.refusal);
        return true;
      default:
        return asked satisfies never;
    }
  }

  /** One statement, which `message` begins, is answered as a whole. */
  #answerWhole(message: Frame, answer: Answer, form: Form): void {
    const { alone } = this.#requests;
    alone.passOver(message, this.#connection.reader, form.rest);
    for (const piece of piecesOf(answer, form, alone.status)) this.deliver(piece);
  }

  askAgain(request: Buffer, fill: Fill | null, done: (answer: Buffer | null) => void): void {
    this.#house.runErrand(this, request, fill, done);
  }

  classify(message: Frame): void {
    if (!this.#house.admission.isOn) return;
    this.#turn ??= new Turn(
      this,
      this.#wantedClass,
      this.#house.admission,
      this.#requests.alone,
      this.#connection.reader,
    );
    this.#turn.classify(message, this.#requests.alone.isInBlock);
  }

  /** What was asked for, a copy of which was to be kept, is over. */
  #endFill(): void {
    this.#cached?.end(this.#house.clock.now());
  }

  /** LISTEN and UNLISTEN need no server of the client's own: one connection listens for all clients of the pool. */
  #answerListening(message: Frame, verdict: Verdict | null): boolean {
    const { alone } = this.#requests;
    const asked = this.settings.isOpaque || alone.isInBlock ? null : verdict?.listening;
    if (!asked?.isAlone || this.#subscriber?.mustAskServer || !alone.mayAnswer(message, this.#connection.reader))
      return false;
    if (!hearsAs(this.settings, this.pool)) return false;
    const listening = asked.all[0]!;
    const isMoot = listening.kind === 'unlisten' && this.#subscriber === null;
    if (!isMoot && !alone.isNaming(message, this.#connection.reader)) {
      this.#subscriber ??= new Subscriber(this.pool, this);
      const heard = this.#subscriber.ask(listening);
      if (heard === 'own') return false;
      if (heard === 'waits') {
        this.#wait(message, 'subscribing');
        return true;
      }
    }
    const tag = listening.kind.toUpperCase();
    return (
      alone.answerControl(message, this.#connection.reader, tag, { before: Status.Idle, after: Status.Idle }) !== 'no'
    );
  }

  onNotified(): void {
    this.#guard('notified', () => {
      this.#tellNews();
      this.#connection.flush();
      if (this.#connection.isStuck) this.onTooMuch();
    });
  }

  onTooMuch(): void {
    this.#end(tooManyNotifications());
  }

  /** Between transactions, and never within a reply. */
  #tellNews(): void {
    const { server } = this;
    const isBetween =
      server === null
        ? this.state === 'idle' && !this.#requests.alone.isInBlock
        : this.state === 'active' && server.outstanding.isFree && !server.isInside && !this.#connection.reader.isInside;
    if (isBetween) for (const bytes of this.#subscriber!.take()) this.deliver(bytes);
  }

  // --- Reads beside others, or elsewhere ------------------------------------------------------------------------

  /** The read that `message` begins, if it is one and has arrived whole. */
  #readIn(message: Frame): Read | null {
    // Of a text that cannot be read reliably nobody knows whether it is a read.
    const isReadable = this.pool.config.mode !== 'session' && !this.settings.isOpaque;
    return isReadable ? this.#requests.alone.findRead(message, this.#connection.reader) : null;
  }

  /** A read goes to a standby which has all that this client has written, if a server of it is free. */
  #readElsewhere(message: Frame, verdict: Verdict | null): boolean {
    this.#read = this.#readIn(message);
    const read = this.#read;
    const { replicas } = this.pool;
    if (read === null || this.#house.admission.isPassthrough || verdict?.isLocal !== false) return false;
    const lender = replicas!.choose(this.#work.wroteAt, this.#house.clock.now());
    if (lender === null) return false;
    const line = read.cost.isSmall && this.pool.config.share === 'auto' ? lender.share(this, read, true) : null;
    if (line !== null) {
      replicas!.count++;
      this.#board(line, message, null);
      return true;
    }
    const server = lender.takeIdle(this.settings);
    if (server === null) return false;
    replicas!.count++;
    if (this.#take(server, lender)) this.#handle(message);
    else this.#held = { ...message };
    return true;
  }

  /** A short read rides on a server with others, if there is one that suits. */
  #ride(message: Frame): boolean {
    this.#read = this.#readIn(message);
    if (!this.#read?.cost.isSmall || this.#turn?.mayShare === false) return false;
    const line = this.pool.share(this, this.#read, this.#turn?.hasRoom(this.#house.clock.now()) !== false);
    if (line === null) return false;
    this.#board(line, message, this.#turn);
    return true;
  }

  /** `turn`: its way through the gate of the host; null: there is none. */
  #board(line: Line, message: Frame, turn: Turn | null): void {
    const { cost, rest } = this.#read!;
    this.#read = null;
    this.pool.counts.shared++;
    this.become('sharing');
    this.#line = line;
    turn?.board(line, this.#house.clock.now());
    line.board(this, cost);
    this.#requests.ride(message, rest, this.#connection.reader, line.server);
  }

  /** The read that it waits with, if that may ride. */
  get wish(): Read | null {
    return this.#read?.cost.isSmall ? this.#read : null;
  }

  onBoard(line: Line): void {
    this.#guard('board', () => {
      const held = this.#held!;
      this.#held = null;
      this.#board(line, held, this.#turn);
    });
  }

  onRideEnd(shape: number, ms: number, costMs: number): void {
    this.#guard('ride', () => {
      if (this.state === 'closed') return;
      this.#work.ride(shape, ms, costMs, this.#turn?.className ?? '');
      this.#endFill();
      this.#line = null;
      this.become('idle');
      this.#pump();
    });
  }

  // --- Waiting, and refusals ------------------------------------------------------------------------------------

  /** Whatever `message` must wait for, it is handled anew then. */
  #wait(message: Frame, state: 'queued' | 'subscribing' | 'fetching', now = this.#house.clock.now()): void {
    this.#held = { ...message };
    this.waitingSince = now;
    this.become(state);
  }

  onWaited(): void {
    this.#guard('waited', () => {
      if (this.state !== 'fetching' && this.state !== 'subscribing') return;
      this.become('idle');
      this.#pump();
    });
  }

  #skip(message: Frame): void {
    if (message.type === ClientMessage.Terminate) return this.#leave();
    if (message.type !== ClientMessage.Sync) return;
    this.#isSkipping = false;
    this.deliver(encode.readyForQuery(this.#requests.alone.status));
  }

  onRefused(refusal: Refusal): void {
    this.#guard('refusal', () => {
      this.#refuse(refusal);
      this.#pump();
    });
  }

  #refuseMessage(message: Frame, refusal: Refusal): void {
    this.#held = { ...message };
    this.#refuse(refusal);
  }

  /** The held message is refused: one error, and for the extended protocol nothing more until Sync. */
  #refuse(refusal: Refusal): void {
    const now = this.#house.clock.now();
    const held = this.#held;
    const isLast = refusal.severity === 'FATAL' || held === null;
    const old = isLast ? null : (this.#cached?.staleFor(refusal.sqlstate, now) ?? null);
    if (old === null) this.#noteRefused(refusal);
    this.#held = null;
    this.#leaveTarpit = null;
    this.#isCancelWanted = false;
    if (this.#subscriber !== null) this.#subscriber.mustAskServer = false;
    if (isLast) return this.#end(refusal);
    this.become('idle');
    this.#turn?.end(now);
    // The database cannot be asked, or cannot answer: the held read is given what was kept of it.
    if (old !== null) this.#answerWhole(held, old, this.#cached!.form);
    this.#endFill();
    if (old !== null) return;
    this.#fail(held, refusal);
  }

  /** The held message is refused, or will be in a moment. Gives the refusal without its number: it has been noted. */
  #noteRefused(refusal: Refusal): Refusal {
    const { id, ...noted } = refusal;
    const held = this.#held;
    if (id === undefined || held === null) return refusal;
    const since = this.state === 'idle' ? 0 : this.waitingSince;
    const verdict = this.settings.isOpaque ? null : this.#requests.alone.verdictOf(held);
    this.#house.journal.onRefused(this, refusal, verdict, since);
    return noted;
  }

  // --- Lease and settings ---------------------------------------------------------------------------------------

  onLease(server: ServerConnection): void {
    this.#guard('lease', () => {
      this.#take(server);
      this.#pump();
    });
  }

  /** True: the server suits this client as it is. */
  #take(server: ServerConnection, standby: ServerPool | null = null): boolean {
    this.#work.take(this.#house.clock.now());
    if (this.#subscriber !== null) this.#subscriber.mustAskServer = false;
    this.#requests.start();
    return this.lease.take(server, standby);
  }

  onFit(server: ServerConnection): void {
    this.become('active');
    if (this.#isCancelWanted) {
      this.#isCancelWanted = false;
      this.#giveBack();
      this.#refuse(canceled());
      this.#pump();
    } else if (this.#requests.alone.isInBlock) {
      this.#requests.open(server);
      this.#work.start(this.#house.clock.now());
    }
  }

  onUnfit(): void {
    this.become('waiting');
    const leased = this.pool.lease(this);
    if (leased === null) return;
    if ('sqlstate' in leased) this.#refuse(leased);
    else this.#take(leased);
    this.#pump();
  }

  onRejected(answer: Buffer): void {
    this.#endWith(answer);
  }

  // --- From the server ------------------------------------------------------------------------------------------

  deliver(bytes: Buffer): boolean {
    if (this.state === 'closed') return true;
    // Before its client hears of it, everybody else does.
    this.#cached?.written.bump();
    if (this.#cached?.isFilling && this.workingServer !== null) {
      for (const piece of this.#cached.pass(bytes, this.#house.clock.now())) this.#connection.send(piece);
    } else this.#connection.send(bytes);
    if (this.#line === null) return this.#connection.hasRoom;
    // Others are behind it: it is not waited for.
    if (this.#connection.isStuck) {
      this.#connection.destroy();
      this.onGone();
    }
    return true;
  }

  get isDelivered(): boolean {
    return this.#connection.isFlushed;
  }

  onProgress(): void {
    this.#guard('progress', () => {
      const { server } = this;
      if (server?.outstanding.isLost) return this.#onDesync(server);
      if (server?.outstanding.size === 0) this.#onQuiet(server);
      else if (server?.outstanding.isCopyOpen) this.#endHold(); // What was held is for the COPY to judge.
      this.#pump();
    });
  }

  /** A reply came that fits nothing: what would follow could be anybody's. */
  #onDesync(server: ServerConnection): void {
    server.isDoomed = true;
    this.lease.pin('desync');
    this.#end(desynced());
  }

  /** The server owes nothing at the moment. */
  #onQuiet(server: ServerConnection): void {
    const { outstanding } = server;
    const lease = this.lease;
    const now = this.#house.clock.now();
    // What was held waited for just this; in an open batch only the client can go on.
    if (this.#held !== null || outstanding.isBatchOpen || outstanding.isDiscarding) this.#endHold();
    if (this.#work.isOn) {
      this.#work.end(this.#requests.takeNumber(), this.#requests.last, this.#turn, now);
      this.#turn?.rest(now);
      this.changedAt = now;
    }
    this.#subscriber?.follow(outstanding.status, this.#requests.hasCommitted);
    if (outstanding.isFree) this.#requests.endTransaction();
    if (outstanding.isFree) this.#cached?.endWrite(now);
    if (this.state !== 'active') return;
    if (this.#isTerminating) {
      this.#endHold();
      return this.#lastWord === null ? this.#leave() : this.#end(this.#lastWord);
    }
    if (!outstanding.isQuiet || this.#isBlocked || this.#held !== null || this.#connection.reader.isInside) return;
    if (outstanding.status !== Status.Idle) {
      if (lease.hasResets && outstanding.status === Status.Transaction) return lease.settle();
      this.#endHold();
      if (this.pool.config.mode === 'statement') this.#end(noTransactions());
      return;
    }
    if (!server.isFree || lease.isPending) return;
    if (lease.isQuestion) return lease.settle();
    this.#endHold();
    if (lease.isPinned) this.#turn?.keep(now);
    else this.#giveBack();
  }

  #giveBack(): void {
    this.#work.giveBack(this.#read, this.#house.clock.now());
    this.#read = null;
    this.#endFill();
    this.become('idle');
    this.lease.giveBack();
    this.#turn?.end(this.#house.clock.now());
  }

  onWritable(): void {
    this.#guard('writable', () => this.#pump());
  }

  onParameter(name: string, value: string): void {
    this.lease.onParameter(name, value);
  }

  onTag(tag: string): void {
    // Plans of what DDL has changed are made anew for whoever prepares from here on.
    if (tag.startsWith('ALTER ') || tag.startsWith('DROP ')) this.pool.statements.forgetAll();
    if (tag !== 'DISCARD ALL' && tag !== 'DEALLOCATE ALL') return;
    this.#requests.forgetNames();
    if (tag === 'DEALLOCATE ALL') return;
    this.#subscriber?.unlisten(null);
    this.lease.discardAll();
  }

  /** The server is gone, and with it whatever it was doing or keeping for this client. */
  onLost(reason: string, isTold: boolean): void {
    const { server } = this;
    this.#guard('lost', () => {
      this.#work.lose();
      this.lease.end();
      this.#turn?.end(this.#house.clock.now());
      this.#line = null;
      const rest = this.#cached?.lose(this.#house.clock.now()) ?? null;
      if (this.state === 'closed' || (rest !== null && this.#answerLost(rest))) return;
      if (isTold) return this.#leave();
      const isCommitting = server !== null && server.outstanding.size > 0 && this.#requests.isCommitting;
      this.#end(serverLost(reason, isCommitting));
    });
  }

  /** Its server was lost amid a read: what was kept of that may do. */
  #answerLost({ pieces, isAnswered }: Rest): boolean {
    if (isAnswered) this.become('idle');
    for (const bytes of pieces) this.#connection.send(bytes);
    if (isAnswered) this.#pump();
    return isAnswered;
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

  // --- Effects and pins -----------------------------------------------------------------------------------------

  onRunning(verdict: Verdict): void {
    // Reads that ride are counted when their ride is over (`onRideEnd`).
    if (this.#line === null) this.#work.ask(verdict);
    this.#cached?.noteRunning(verdict);
  }

  onSlow(shape: number, ms: number, verdict: Verdict | null): void {
    this.#house.journal.onSlow(this, shape, ms, verdict);
  }

  block(): void {
    this.#isBlocked = true;
  }

  unblock(): void {
    this.#isBlocked = false;
  }

  skipBatch(): void {
    this.#isSkipping = true;
  }

  #endHold(): void {
    const status = this.#requests.endHold();
    if (status === 0) return;
    this.lease.adopt();
    this.lease.checkEncoding();
    this.deliver(encode.readyForQuery(status));
  }

  onRan(verdict: Verdict, isOk: boolean): void {
    if (isOk && verdict.listening !== null) this.#subscriber?.ran(verdict.listening.all);
    this.lease.ran(verdict, isOk);
  }

  // --- Cancel, time, end ----------------------------------------------------------------------------------------

  /** A CancelRequest with this session's key arrived. */
  cancel(): void {
    this.#guard('cancel', () => {
      if (isHeldUp(this.state)) this.#giveUp();
      else if (this.state === 'syncing') this.#isCancelWanted = true;
      else if (this.state === 'sharing') this.#line!.cancel(this);
      else if (this.state === 'active' && this.server!.outstanding.size > 0) this.server!.cancel(this);
    });
  }

  /** What it waits with has been cancelled. */
  #giveUp(): void {
    this.#leaveTarpit?.();
    this.#subscriber?.giveUp();
    this.pool.leave(this);
    this.#refuse(canceled());
    this.#pump();
  }

  /** Ends what has taken too long. Called by client/listener every fraction of a second. */
  tick(now: number): void {
    const { server } = this;
    if (this.state === 'subscribing') return this.#tire(this.#subscriber!, now);
    if (this.state === 'fetching') return this.#tire(this.#cached!, now);
    if (server === null && this.state !== 'idle') return; // A rider is its line's affair, a waiter the pool's.
    // No closure here: ten thousand idle clients would keep the collector from its rest.
    try {
      const refusal = this.#work.check(server, this.isInTransaction, this.changedAt, now);
      if (refusal !== null) this.#end(refusal);
    } catch (thrown) {
      this.#endByBug('tick', thrown);
    }
  }

  /** May the held message wait any longer? */
  #tire(waiting: Pick<CachedReads | Subscriber, 'tire'>, now: number): void {
    this.#guard('tire', () => {
      const outcome = waiting.tire(now - this.waitingSince, statementTimeoutOf(this.settings), now);
      if (outcome === 'own') this.onWaited();
      else if (outcome !== 'waits') this.onRefused(outcome);
    });
  }

  /** Nothing more is read from the client, until `unsuspend`. */
  suspend(): void {
    this.#connection.isSuspended = true;
    this.#guard('suspend', () => this.#readOn());
  }

  unsuspend(): void {
    this.#connection.isSuspended = false;
    this.#guard('unsuspend', () => this.#pump());
  }

  /** Nothing is on its way to the client. */
  get isFlushed(): boolean {
    return this.state === 'closed' || this.isDelivered;
  }

  /** Drain: a client without a transaction is told to go (57P01); one with a transaction may finish it. */
  drain(): boolean {
    if ((this.state !== 'idle' && this.isInTransaction) || isAnswerDue(this.state)) return false;
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
    this.#connection.end();
    this.#leave();
  }

  /** The client is gone or going: it leaves whatever it is in, and gives back what it has. */
  #leave(): void {
    if (this.state === 'closed') return;
    const isCut = (this.#connection.reader.isInside && !this.#isSkipping) || this.state === 'syncing';
    if (this.state === 'waiting') this.pool.leave(this);
    this.#leaveTarpit?.();
    this.#endFill();
    this.#cached?.written.end();
    const now = this.#house.clock.now();
    this.#line?.abandon(this);
    this.#line = null;
    this.become('closed');
    this.#held = null;
    this.#requests.close();
    this.#subscriber?.close();
    this.lease.abandon(isCut, this.#isTerminating);
    this.#turn?.leave(now);
    this.#connection.leave(this.#house.clock);
    this.#house.onEnd(this);
  }

  become(state: SessionState): void {
    this.state = state;
    this.changedAt = this.#house.clock.now();
  }

  /** A bug ends the session, never the process. */
  #guard(where: string, run: () => void): void {
    try {
      run();
    } catch (thrown) {
      this.#endByBug(where, thrown);
    }
  }

  #endByBug(where: string, thrown: unknown): void {
    this.#house.onBug(where, thrown);
    if (this.server !== null) this.server.isDoomed = true;
    // What it has sent there may be half a request: whoever else is on that server must not wait for its end.
    this.#line?.server.close('a bug in the proxy');
    try {
      this.#end(fatal(SqlState.InternalError, `internal error in the proxy: ${messageOf(thrown)}`));
    } catch {
      this.state = 'closed';
      this.#connection.destroy();
    }
  }
}
