/**
 * What ties a client to its server beyond a transaction, as far as its statements show: pins, by reason; settings that
 * may have changed; and what the server must be asked before it is given back (client/settle). Called by
 * client/lease, which makes one when a statement first has an effect.
 *
 * The one idea: effects are suspected here and established by asking. Only what cannot be asked for is believed.
 *
 * Invariant: a client counts once in `pool.pinned`, from the statement that is likely to pin it to the end of its lease.
 */
import type { ServerPool } from '../server/pool.ts';
import { CUSTOM_MAX, reportedName, type Settings } from '../server/settings.ts';
import type { Effects, PinReason } from '../sql/effects.ts';
import { askedReasons, type Findings, type Question } from './settle.ts';

/** What DISCARD ALL does not undo. */
const lastingPins: readonly PinReason[] = ['session', 'load', 'desync'];
/** Of what else the session has come to have, or of what its settings are, nobody knows. */
export const darkPins: readonly PinReason[] = ['temp', 'setting', 'function', 'opaque', 'encoding'];

export class Ties {
  readonly #pool: ServerPool;
  readonly #startup: Settings;
  #pins: Set<PinReason> | null = null;
  /** The client counts as pinned. */
  isCounted = false;
  /** It has been pinned since its lease began: nothing of the session may be left to others, whatever it was. */
  wasPinned = false;
  #touched: Set<string> | null = null;
  /** Settings that its statements of SQL-level PREPARE touch. */
  #prepared: Set<string> | null = null;
  #resets: Set<string> | null = null;
  #isProbeWanted = false;
  /** All that ties is statements of SQL-level PREPARE, which may become those of the protocol level. */
  isMovable = false;
  /** Statements that have run and are not judged yet. */
  pendingVerdicts = 0;

  /** `startup`: what the client's session was set to at its start, to which RESET leads back. */
  constructor(pool: ServerPool, startup: Settings) {
    this.#pool = pool;
    this.#startup = startup;
  }

  get pins(): readonly PinReason[] {
    return [...(this.#pins ?? [])];
  }

  get isPinned(): boolean {
    return this.#pins !== null;
  }

  has(reason: PinReason): boolean {
    return this.#pins?.has(reason) ?? false;
  }

  /** What a text means here cannot be told from the client's settings. */
  get isDark(): boolean {
    return this.#pins !== null && darkPins.some((reason) => this.#pins!.has(reason));
  }

  /** Nothing ties, and there is nothing to ask. */
  get isClean(): boolean {
    return this.#pins === null && this.pendingVerdicts === 0 && !this.isQuestion;
  }

  /** The server is to be asked something at the end of the transaction. */
  get isQuestion(): boolean {
    return this.#touched !== null || this.hasResets || this.#isProbeWanted || this.isMovable;
  }

  /** RESET has run: that is looked after even within a transaction. */
  get hasResets(): boolean {
    return this.#resets !== null;
  }

  /** A statement with these effects has run, in a session with `settings`. */
  absorb(effects: Effects, settings: Settings): void {
    for (const name of effects.settings) this.#touch(name, settings);
    if (effects.isPreparing) this.#prepared = new Set([...(this.#prepared ?? []), ...effects.settings]);
    if (effects.references.some(({ command }) => command === 'execute'))
      for (const name of this.#prepared ?? []) this.#touch(name, settings);
    for (const name of effects.resets) this.#reset(name, settings);
    if (effects.isResetAll) this.#resetAll(settings);
    if (effects.isProbed || effects.isChecked || (effects.isUndoing && this.isPinned)) this.#isProbeWanted = true;
    for (const reason of effects.pins) this.pin(reason);
  }

  /** DISCARD ALL has run. */
  discardAll(settings: Settings): void {
    this.#resetAll(settings);
    this.#unpin(this.pins.filter((reason) => !lastingPins.includes(reason)));
    this.#isProbeWanted = false;
    this.isMovable = false;
  }

  #touch(name: string, settings: Settings): void {
    if (reportedName(settings, name) !== null) return; // Followed as it is reported.
    this.#touched ??= new Set();
    this.#touched.add(name);
    if (this.#touched.size + settings.custom.size > CUSTOM_MAX) this.pin('setting');
  }

  #reset(name: string, settings: Settings): void {
    this.#touch(name, settings);
    this.#resets ??= new Set();
    this.#resets.add(name);
  }

  #resetAll(settings: Settings): void {
    for (const name of [...settings.custom.keys(), ...this.#startup.custom.keys()]) this.#reset(name, settings);
    for (const name of this.#startup.reported.keys()) this.#reset(name.toLowerCase(), settings);
  }

  /** What to ask the server. Until the transaction `isOver` whatever was set may yet be rolled back. */
  takeQuestion(isOver: boolean): Question {
    const question = {
      settings: isOver ? [...(this.#touched ?? [])] : [],
      resets: [...(this.#resets ?? [])],
      isProbed: isOver && this.#isProbeWanted,
    };
    this.#resets = null;
    if (isOver) {
      this.#touched = null;
      this.#isProbeWanted = false;
    }
    return question;
  }

  /** What the server said of the reasons to stay pinned that can be asked for. */
  answer({ pins }: Findings): void {
    if (pins === null) return;
    this.#unpin(askedReasons.filter((reason) => !pins.includes(reason)));
    const others = new Set([...this.pins, ...pins]);
    this.isMovable = others.delete('prepare') && others.size === 0;
    if (!this.isMovable) for (const reason of pins) this.pin(reason);
  }

  /** The statements of SQL-level PREPARE are the protocol level's from here on, or must stay. */
  moved(isDone: boolean): void {
    this.isMovable = false;
    if (isDone) this.#unpin(['prepare']);
    else this.pin('prepare');
  }

  pin(reason: PinReason): void {
    if (this.#pins?.has(reason)) return;
    if (this.#pins === null) {
      this.count();
      this.#pins = new Set();
      this.wasPinned = true;
    }
    this.#pool.counts.pins[reason]++;
    this.#pins.add(reason);
  }

  #unpin(reasons: readonly PinReason[]): void {
    if (this.#pins === null) return;
    for (const reason of reasons) this.#pins.delete(reason);
    if (this.#pins.size === 0) this.release();
  }

  /** The client counts as pinned: what it runs next is likely to pin it. */
  count(): void {
    // Mode session is asked for, not suffered: it does not count against pinnedMax.
    if (this.isCounted || this.#pool.config.mode === 'session') return;
    this.isCounted = true;
    this.#pool.pinned++;
  }

  /** The lease ends, or its server is gone: nothing pins any more. */
  release(): void {
    this.#pins = null;
    if (this.isCounted) this.#pool.pinned--;
    this.isCounted = false;
  }
}
