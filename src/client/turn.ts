/**
 * A session's way through the gate of its host (guard/gate): asked at the first statement that needs a server, ended when
 * the server goes back. Made by client/session while admission is on.
 *
 *     none ──ask──▶ admitted ──end──▶ none
 *       └──ask──▶ waiting ──▶ admitted, or shed ──▶ none
 *
 * The one idea: the session need not know of classes and permits, only whether it is its turn.
 */
import type { Admission } from '../guard/admission.ts';
import { type Class, type Classes, type ClientTraits, type Narrowed, priorities } from '../guard/classes.ts';
import type { Gate, GateInputs } from '../guard/gate.ts';
import type { Permit } from '../guard/permit.ts';
import type { Request, Shed, ShedReason, Ticket } from '../guard/queue.ts';
import * as encode from '../protocol/encode.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import type { Refusal } from '../protocol/sqlstate.ts';
import type { Line } from '../server/line.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Alone } from './alone.ts';
import { isBegin } from './block.ts';
import { fingerprintOf } from './fingerprint.ts';

/** Whose turn it is to be. */
export interface TurnClient {
  readonly user: string;
  readonly database: string;
  readonly pool: ServerPool;
  readonly socket: { readonly remoteAddress?: string | undefined };
  readonly settings: Settings;
  deliver(bytes: Buffer): void;
  onAdmitted(): void;
  onShed(shed: Shed): void;
}

export interface Inputs extends GateInputs {
  class: string;
  priority: string;
  /** What has put it into its class. */
  rule: string;
  /** 0: none. */
  deadlineMs: number;
}

export type Asked = { kind: 'admitted' | 'waiting' } | ({ kind: 'shed' } & Shed);

/** Who leaves within this time after a refusal does so because of it. */
const OFFENCE_MS = 1_000;
/** Of a request not more is kept than a client may be ahead (client/session). */
const BYTES_MAX = 128 * 1024;

const ADMITTED: Asked = { kind: 'admitted' };
const WAITING: Asked = { kind: 'waiting' };

export class Turn implements Request {
  readonly #client: TurnClient;
  readonly #admission: Admission;
  #gate: Gate;
  #address: string;
  readonly #traits: Omit<ClientTraits, 'application'>;
  readonly #alone: Alone;
  readonly #reader: FrameReader;
  /** The request that the gate is being asked about. */
  #asked: Frame | null = null;
  /** The rules that may hold for this client, as of `#classes` and `application`. */
  #narrowed: Narrowed | null = null;
  #classes: Classes | null = null;
  #class: Class | null = null;
  #isUpkeep = false;
  /** By what it is in that class. */
  #statement: Verdict | null = null;
  #isAlone = false;
  #permit: Permit | null = null;
  #ticket: Ticket | null = null;
  /** The tag `deadline_ms` of its statement; NaN: none. */
  #taggedMs = Number.NaN;
  // What is asked for; it does not change while it waits.
  application = '';
  deadline = 0;
  bytes = 0;
  shape = 0;
  haste = 0;
  /** When its last refusal was answered, or will be. */
  #shedAt = Number.NEGATIVE_INFINITY;

  /** `wanted`: the class that the client has asked for; `reader` has what it has sent behind the message in question. */
  constructor(client: TurnClient, wanted: string, admission: Admission, alone: Alone, reader: FrameReader) {
    const { user, database, socket } = client;
    this.#client = client;
    this.#admission = admission;
    this.#address = client.pool.hostAddress;
    this.#gate = admission.gateOf(this.#address);
    this.#traits = { user, database, address: socket.remoteAddress, wanted };
    this.#alone = alone;
    this.#reader = reader;
  }

  /** The class of the request that was classified. */
  get class(): Class {
    return this.#class!;
  }

  /** '' before anything was classified. */
  get className(): string {
    return this.#class?.name ?? '';
  }

  /** What was admitted is upkeep: what comes behind it asks anew. */
  get isUpkeep(): boolean {
    return this.#permit !== null && this.#isUpkeep;
  }

  /** 0 is critical. */
  get rank(): number {
    return priorities.indexOf(this.class.priority);
  }

  /** ms after which the answer to what was asked is not wanted any more; 0: not known. */
  get patienceMs(): number {
    return this.deadline || this.class.deadline;
  }

  get isAdmitted(): boolean {
    return this.#permit !== null;
  }

  /**
   * Says which class the request that begins with `message` is in, unless one has been admitted. `isInBlock`: a transaction
   * is open around it. BEGIN is none by itself: what is behind it in the same batch decides.
   */
  classify(message: Frame, isInBlock: boolean): void {
    if (this.isAdmitted) return;
    this.#goToGate();
    const { classes } = this.#admission;
    const application = applicationOf(this.#client);
    if (this.#narrowed === null || this.#classes !== classes || this.application !== application) {
      this.#classes = classes;
      this.application = application;
      this.#narrowed = classes.narrow({ ...this.#traits, application });
    }
    const own = this.#alone.verdictOf(message);
    const isBeginning = isBegin(own);
    const statement = isBeginning ? (this.#alone.verdictBehind(message, this.#reader) ?? own) : own;
    const isOutside = !isBeginning && !isInBlock && this.#client.pool.config.mode !== 'session';
    // Upkeep with more behind it in the same batch is not upkeep.
    const isAlone = isOutside && (own?.isUpkeep !== true || this.#alone.isSingle(message, this.#reader));
    this.#class = classes.classOf(this.#narrowed, statement, isAlone);
    this.#statement = statement;
    this.#isAlone = isAlone;
    this.#isUpkeep = isAlone && own?.isUpkeep === true;
    this.shape = isAlone ? (statement?.number ?? 0) : 0;
    this.#taggedMs = Number(statement?.tags?.get('deadline_ms'));
  }

  /** Is it the turn of the request that begins with `message`, which was classified? */
  ask(message: Frame, now: number): Asked {
    if (this.#permit !== null) return ADMITTED;
    const timeoutMs = statementTimeoutOf(this.#client.settings);
    const limits = [timeoutMs, this.#taggedMs].filter((ms) => ms > 0);
    this.deadline = limits.length > 0 ? Math.min(...limits) : 0;
    this.bytes = Math.min(message.size, BYTES_MAX);
    if (now - this.#shedAt >= this.#admission.tarpit.hasteMs) this.haste = 0;
    this.#asked = message;
    const asked = this.#decide(now, true);
    this.#asked = null;
    return asked;
  }

  /** `isNew`: it may be told that it is admitted although there is too much. */
  #decide(now: number, isNew: boolean): Asked {
    const decision = this.#gate.decide(this, now);
    switch (decision.kind) {
      case 'admit':
        this.#permit = decision.permit;
        this.haste = 0;
        if (isNew && (decision.isPoor || (decision.isWarned && this.#admission.mode === 'warn'))) this.#warn();
        return ADMITTED;
      case 'wait':
        this.#ticket = decision.ticket;
        return WAITING;
      case 'shed':
        this.#count(decision, now);
        return decision;
      default:
        return decision satisfies never;
    }
  }

  #warn(): void {
    const text = `class ${this.class.name} is beyond its share: this would have waited or been refused`;
    this.#client.deliver(encode.notice(text));
  }

  onAdmit(permit: Permit): void {
    this.#ticket = null;
    this.#permit = permit;
    this.haste = 0;
    this.#client.onAdmitted();
  }

  onShed(shed: Shed, now: number): void {
    this.#ticket = null;
    this.#count(shed, now);
    this.#client.onShed(shed);
  }

  onMoved(now: number): void {
    this.#ticket = null;
    this.#goToGate();
    const asked = this.#decide(now, false);
    if (asked.kind === 'shed') this.#client.onShed(asked);
    else if (asked.kind !== 'waiting') this.#client.onAdmitted();
  }

  /** The gate of the host that the client's servers are on by now. */
  #goToGate(): void {
    const { hostAddress } = this.#client.pool;
    if (hostAddress === this.#address) return;
    this.#address = hostAddress;
    this.#gate = this.#admission.gateOf(hostAddress);
  }

  #count({ delayMs }: Shed, now: number): void {
    this.haste++;
    this.#shedAt = now + delayMs;
  }

  /** What the decision about it rests on, for whoever asks why (ops/journal). */
  get inputs(): Inputs {
    const { name, priority } = this.class;
    const rule = this.#classes!.ruleOf(this.#narrowed!, this.#statement, this.#isAlone);
    return { class: name, priority, rule, deadlineMs: this.patienceMs, ...this.#gate.inputsOf(name) };
  }

  /** What its client is told when it is refused. */
  refusalOf(reason: ShedReason): Refusal {
    return this.#client.pool.refuse(reason, whyShed[reason], { className: this.class.name, zone: this.#gate.zone });
  }

  /** Its client leaves: right after a refusal its pool will replace it at once. */
  leave(now: number): void {
    this.end(now);
    if (now - this.#shedAt < OFFENCE_MS) this.#admission.tarpit.left(partyOf(this.#client), now);
  }

  fingerprint(): number {
    return this.#asked === null ? 0 : fingerprintOf(this.#asked, this.#reader, partyOf(this.#client));
  }

  /** It must have a server, whatever the gate would say: what it does is counted all the same. */
  admitOutright(now: number): void {
    this.#permit ??= this.#gate.admit(this.class, now);
  }

  /** Its server is kept for more than what it was admitted for: upkeep that pins is not upkeep, whatever comes next. */
  keep(now: number): void {
    if (!this.isUpkeep) return;
    this.end(now);
    this.#isUpkeep = false;
    this.#class = this.#classes!.classOf(this.#narrowed!, null, false);
    this.admitOutright(now);
    this.rest(now);
  }

  /** May the request that was classified share a server that is at work? */
  get mayShare(): boolean {
    return this.#permit !== null || this.#gate.mayShare(this.#class!);
  }

  /** May it have a server that is idle, for itself and others to share? */
  hasRoom(now: number): boolean {
    return this.#permit !== null || this.#gate.hasRoom(this.#class!, now);
  }

  /** It shares the server of `line`: one permit for all of them. */
  board(line: Line, now: number): void {
    if (line.permit === null) line.permit = this.#permit ?? this.#gate.admit(this.#class!, now);
    else if (this.#permit === null) this.#gate.countShared(this.#class!);
    else this.#permit.end(now);
    this.#permit = null;
  }

  /** A statement of the shape with this number (0: not known) has taken `ms`. Gives what it has cost, in ms of calm. */
  sample(shape: number, ms: number): number {
    return this.#permit?.sample(shape, ms) ?? ms;
  }

  /** The server has nothing to do for it, or has again. */
  rest(now: number): void {
    this.#permit?.rest(now);
  }

  work(now: number): void {
    this.#permit?.work(now);
  }

  /** It is over, or not wanted any more. */
  end(now: number): void {
    if (this.#ticket !== null) this.#gate.leave(this.#ticket);
    this.#ticket = null;
    this.#permit?.end(now);
    this.#permit = null;
  }
}

/** Clients that are taken for one when they come and go. */
export function partyOf(client: Pick<TurnClient, 'user' | 'database' | 'settings'>): string {
  return `${client.user}\0${client.database}\0${applicationOf(client)}`;
}

function applicationOf({ settings }: Pick<TurnClient, 'settings'>): string {
  return settings.reported.get('application_name') ?? '';
}

const whyShed: Record<ShedReason, string> = {
  switch: 'its class is switched off, or to a share',
  credits: 'the reserve of the database is not to be spent on it (SHOW LEDGERS)',
  throttle: 'its application is refused most of the time at present',
  queue: 'as many requests of its class wait as may (classes.*.queue.max)',
  wait: 'its class had no server for it in time (classes.*.queue.waitMax)',
  deadline: 'its deadline would have passed before it was answered',
  overload: 'its class is overloaded',
  hold: 'no primary can be reached, and as many requests wait for one as may (hold.requestsMax, hold.bytesMax)',
};

/** What the client's session has for statement_timeout, in ms; 0: none. */
export function statementTimeoutOf(settings: Settings): number {
  return millisOf(settings.custom.get('statement_timeout'));
}

/** A duration as Postgres writes it in ms: a number, or with the unit ms, s, min, h or d; 0 when it is none. */
function millisOf(text: string | undefined): number {
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?$/.exec(text?.trim() ?? '') ?? [];
  const units: Record<string, number> = { ms: 1, s: 1_000, min: 60_000, h: 3_600_000, d: 86_400_000 };
  return amount === undefined ? 0 : Number(amount) * units[unit ?? 'ms']!;
}
