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
import type { Class, Classes, ClientTraits, Narrowed, StatementTraits } from '../guard/classes.ts';
import type { Gate } from '../guard/gate.ts';
import type { Permit } from '../guard/permit.ts';
import type { Request, Shed, Ticket } from '../guard/queue.ts';
import type { Line } from '../server/line.ts';

/** Whose turn it is to be. */
export interface TurnHost {
  onAdmitted(): void;
  onShed(shed: Shed): void;
  /** A number that the request, asked again, has as well. */
  fingerprint(): number;
}

export type Asked = { kind: 'admitted' | 'warned' | 'waiting' } | ({ kind: 'shed' } & Shed);

/** Who leaves within this time after a refusal does so because of it. */
const OFFENCE_MS = 1_000;

const ADMITTED: Asked = { kind: 'admitted' };
const WARNED: Asked = { kind: 'warned' };
const WAITING: Asked = { kind: 'waiting' };

export class Turn implements Request {
  readonly #admission: Admission;
  readonly #gate: Gate;
  readonly #traits: Omit<ClientTraits, 'application'>;
  readonly #host: TurnHost;
  /** The rules that may hold for this client, as of `#classes` and `application`. */
  #narrowed: Narrowed | null = null;
  #classes: Classes | null = null;
  #class: Class | null = null;
  #permit: Permit | null = null;
  #ticket: Ticket | null = null;
  /** The tag `deadline_ms` of its statement; NaN: none. */
  #deadline = 0;
  // What is asked for; it does not change while it waits.
  application = '';
  deadline = 0;
  bytes = 0;
  shape = 0;
  haste = 0;
  /** When its last refusal was answered, or will be. */
  #shedAt = Number.NEGATIVE_INFINITY;

  constructor(admission: Admission, host: string, traits: Omit<ClientTraits, 'application'>, session: TurnHost) {
    this.#admission = admission;
    this.#gate = admission.gateOf(host);
    this.#traits = traits;
    this.#host = session;
  }

  /** How the reserve of the host is doing; '' when it has none. */
  get zone(): string {
    return this.#gate.zone;
  }

  /** The class of the request that was classified. */
  get class(): Class {
    return this.#class!;
  }

  get isAdmitted(): boolean {
    return this.#permit !== null;
  }

  /** The class of the request that was asked for last. */
  get className(): string {
    return this.#class?.name ?? '';
  }

  /** Says which class a request of `application` is in; see Classes.classOf. */
  classify(application: string, statement: StatementTraits | null, isAlone: boolean): void {
    const { classes } = this.#admission;
    if (this.#narrowed === null || this.#classes !== classes || this.application !== application) {
      this.#classes = classes;
      this.application = application;
      this.#narrowed = classes.narrow({ ...this.#traits, application });
    }
    this.#class = classes.classOf(this.#narrowed, statement, isAlone);
    this.shape = isAlone ? (statement?.number ?? 0) : 0;
    this.#deadline = Number(statement?.tags?.get('deadline_ms'));
  }

  /**
   * Is it the turn of the request that was classified? `timeoutMs`: its `statement_timeout`, 0: none. `bytes` of it are kept
   * while it waits.
   */
  ask(timeoutMs: number, bytes: number, now: number): Asked {
    if (this.#permit !== null) return ADMITTED;
    const limits = [timeoutMs, this.#deadline].filter((ms) => ms > 0);
    this.deadline = limits.length > 0 ? Math.min(...limits) : 0;
    this.bytes = bytes;
    if (now - this.#shedAt >= this.#admission.tarpit.hasteMs) this.haste = 0;
    const decision = this.#gate.decide(this, now);
    switch (decision.kind) {
      case 'admit':
        this.#permit = decision.permit;
        this.haste = 0;
        return decision.isPoor || (decision.isWarned && this.#admission.mode === 'warn') ? WARNED : ADMITTED;
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

  onAdmit(permit: Permit): void {
    this.#ticket = null;
    this.#permit = permit;
    this.haste = 0;
    this.#host.onAdmitted();
  }

  onShed(shed: Shed, now: number): void {
    this.#ticket = null;
    this.#count(shed, now);
    this.#host.onShed(shed);
  }

  #count({ delayMs }: Shed, now: number): void {
    this.haste++;
    this.#shedAt = now + delayMs;
  }

  /** It has just been refused. */
  isOffended(now: number): boolean {
    return now - this.#shedAt < OFFENCE_MS;
  }

  fingerprint(): number {
    return this.#host.fingerprint();
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

  /** A statement of the shape with this number (0: not known) has taken `ms`. */
  sample(shape: number, ms: number): void {
    this.#permit?.sample(shape, ms);
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
