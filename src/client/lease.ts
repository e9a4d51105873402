/**
 * A client's hold on a server, from the pool's giving it to its going back: the server gets the client's settings, and at
 * the end is asked what the client has left on it. Owned by client/session, which decides when.
 *
 *     take ──settings fit──▶ onFit … statements: mayRun, ran … settle ──▶ end
 *       └──they do not──▶ another server, or the end of the session
 *
 * The one idea: what ties a client to its server (client/ties) and what both are set to stand in one place, so that the
 * session need only ask whether something ties.
 */
import * as encode from '../protocol/encode.ts';
import { readErrorFields, ServerMessage, Status } from '../protocol/messages.ts';
import type { Note } from '../protocol/outstanding.ts';
import { SqlState } from '../protocol/sqlstate.ts';
import type { Owner, ServerConnection } from '../server/connection.ts';
import type { ServerPool } from '../server/pool.ts';
import { type Settings, settingsDiff } from '../server/settings.ts';
import type { PinReason } from '../sql/effects.ts';
import { effectsOf, type Verdict } from '../sql/verdict.ts';
import {
  deallocateQuery,
  type Prepared,
  preparedNote,
  preparedQuery,
  type Question,
  settleNote,
  settleQuery,
} from './settle.ts';
import { darkPins, Ties } from './ties.ts';

/** Whose lease it is. */
export interface Lessee extends Owner {
  readonly pool: ServerPool;
  /** What the client's session is set to. */
  settings: Settings;
  /** The server is asked something for the client ('syncing', 'settling'), or works for it again ('active'). */
  become(state: 'syncing' | 'settling' | 'active'): void;
  /** The server has the client's settings. */
  onFit(server: ServerConnection): void;
  /** It would not give up somebody else's settings, and is gone: another one is wanted. */
  onUnfit(): void;
  /** It would not take the client's settings: as at a login, `answer` is the client's last. */
  onRejected(answer: Buffer): void;
}

/** The client's prepared statements (client/request). */
interface Naming {
  /** May statements of the protocol level get these names? Not if one is in use. */
  mayNameAll(statements: readonly Prepared[]): boolean;
  nameAll(statements: readonly Prepared[]): void;
}

/** The longest value of a setting that is tracked, in bytes; a longer one pins. */
const VALUE_MAX = 16 * 1024;
/** How often the server is asked what is left, when it does not say. */
const SETTLE_TRIES = 5;

export class Lease {
  server: ServerConnection | null = null;
  #lender: ServerPool | null = null;
  readonly #client: Lessee;
  readonly #naming: Naming;
  /** What the client's session was set to at its start, to which RESET leads back. */
  readonly #startup: Settings;
  /** What ties the client to its server; null until a statement first has an effect. */
  #ties: Ties | null = null;
  /** What was sent sets how texts are understood, or may; it is not known yet, or holds for the transaction only. */
  #hasSetting = false;

  constructor(client: Lessee, naming: Naming) {
    this.#client = client;
    this.#naming = naming;
    this.#startup = client.settings;
  }

  get pins(): readonly PinReason[] {
    return this.#ties?.pins ?? [];
  }

  get isPinned(): boolean {
    return this.#ties?.isPinned === true;
  }

  /** Nothing has been sent to the server, and nothing ties. */
  get isFresh(): boolean {
    return this.server!.isFree && (this.#ties === null || this.#ties.isClean);
  }

  /** Statements have run whose effects are not known yet. */
  get isPending(): boolean {
    return this.#ties !== null && this.#ties.pendingVerdicts > 0;
  }

  /** Texts are understood by the settings that the client is known to have. */
  get hasKnownSettings(): boolean {
    return !this.#hasSetting && this.#ties?.isDark !== true;
  }

  /** A text is sent that changes how those behind it are understood, or may. */
  noteSetting(): void {
    this.#hasSetting = this.server !== null;
  }

  /** The server is free, and the client keeps it: whatever was set has been reported, or asked for. */
  rest(): void {
    if (!this.isPending) this.#hasSetting = false;
  }

  /** The server is to be asked something before it goes back. */
  get isQuestion(): boolean {
    return this.#ties?.isQuestion === true;
  }

  /** RESET has run in the transaction that is open. */
  get hasResets(): boolean {
    return this.#ties?.hasResets === true;
  }

  /** It is a standby's, which takes reads only. */
  get isOfStandby(): boolean {
    return this.#lender !== null;
  }

  /** The client must keep its server, for this reason. */
  pin(reason: PinReason): void {
    this.#tied.pin(reason);
  }

  get #tied(): Ties {
    this.#ties ??= new Ties(this.#client.pool, this.#startup);
    return this.#ties;
  }

  // --- The beginning ----------------------------------------------------------------------------------------------

  /** The pool, or `standby`, has given `server`. True: it suits the client as it is, and `onFit` has been called. */
  take(server: ServerConnection, standby: ServerPool | null): boolean {
    const client = this.#client;
    this.#lender = standby;
    server.holder = client;
    this.server = server;
    const sql = settingsDiff(server.settings, client.settings, server.login);
    if (sql === null) {
      this.#fit(server);
      return true;
    }
    const isReset = sql[0]!.startsWith('RESET');
    client.become('syncing');
    const wants = client.settings.custom;
    let failure: Buffer | null = null;
    server.ask(sql.join('; '), client, {
      message: (type, bytes) => {
        if (type === ServerMessage.ErrorResponse) failure ??= bytes;
      },
      done: () => {
        server.settings = client.pool.book.intern(server.settings.reported, wants);
        this.#fit(server);
      },
      dropped: () => this.#onRefused(failure, isReset),
    });
    return false;
  }

  #fit(server: ServerConnection): void {
    this.adopt();
    this.checkEncoding();
    if (this.#client.pool.config.mode === 'session') this.pin('session');
    this.#client.onFit(server);
  }

  /**
   * The server would not take the settings that the client asked for: as at a login, that is the end. If it was to give
   * up somebody else's first, or was still under somebody else's time limit, that may be the reason: then another server is tried.
   */
  #onRefused(failure: Buffer | null, isReset: boolean): void {
    const { server } = this;
    if (server === null) return; // Lost meanwhile.
    server.isDoomed = true;
    const fields = failure === null ? new Map<string, string>() : new Map(readErrorFields(failure.subarray(5)));
    const isStruck = fields.get('C') === SqlState.QueryCanceled && server.settings !== server.login;
    if (isReset || isStruck) {
      this.server = null;
      this.#lender = null;
      server.holder = null;
      server.close('its settings could not be changed');
      return this.#client.onUnfit();
    }
    fields.set('S', 'FATAL').set('V', 'FATAL');
    this.#client.onRejected(encode.errorFields(fields));
  }

  /** The server's settings are the client's from here on: tell it of those that it has not been told of. */
  adopt(): void {
    const client = this.#client;
    const { settings } = this.server!;
    if (client.settings === settings) return;
    for (const [name, value] of settings.reported) {
      if (client.settings.reported.get(name) !== value) client.deliver(encode.parameterStatus(name, value));
    }
    client.settings = settings;
  }

  // --- While it lasts ---------------------------------------------------------------------------------------------

  /** Texts that cannot be read reliably may have any effect. */
  checkEncoding(): void {
    if (this.#client.settings.isOpaque) this.pin('encoding');
  }

  /** The client's setting has changed, as its server reports. */
  onParameter(name: string, value: string): void {
    const client = this.#client;
    client.settings = client.pool.book.withReported(client.settings, name, value);
    this.checkEncoding();
  }

  /** DISCARD ALL has run. */
  discardAll(): void {
    this.#tied.discardAll(this.#client.settings);
  }

  /** May this statement run? Not when it would pin its client, too many are pinned, and nothing is under way yet. */
  mayRun(verdict: Verdict): boolean {
    if (verdict.effects === null && verdict.shape === null) return true;
    const { pool } = this.#client;
    const effects = verdict.shape?.state === 'known' ? effectsOf(verdict, pool.catalog) : verdict.effects;
    if (verdict.shape?.state === 'pending' || effects?.pins.some((reason) => darkPins.includes(reason)))
      this.noteSetting();
    if (effects === null || !(effects.isProbed || effects.pins.length > 0)) return true;
    if (this.isFresh && !this.#tied.isCounted && pool.pinned >= pool.pinnedMax) return false;
    this.#tied.count();
    return true;
  }

  /** A statement with this verdict ran to its end, or failed. The client's `onProgress` is called when more is known. */
  ran(verdict: Verdict, isOk: boolean): void {
    if (this.server === null) return; // It ended when the lease was over: whoever cleans the server sees to it.
    if (verdict.shape?.state !== 'pending') return this.#absorb(verdict, isOk);
    const ties = this.#tied;
    ties.pendingVerdicts++;
    verdict.shape.waiting.push(() => {
      ties.pendingVerdicts--;
      if (ties !== this.#ties) return; // The lease that it ran in is over.
      this.#absorb(verdict, isOk);
      this.#client.onProgress();
    });
  }

  #absorb(verdict: Verdict, isOk: boolean): void {
    const effects = effectsOf(verdict, this.#client.pool.catalog);
    // What has failed may have been committed in part, or not be undone by rollback; but what no parser takes, no
    // server has run.
    const isRejected = !isOk && verdict.shape?.isUnparsed === true;
    if (effects !== null && !isRejected) this.#tied.absorb(effects, this.#client.settings);
  }

  // --- The end ----------------------------------------------------------------------------------------------------

  /**
   * Asks the server what the transaction has left behind, and makes it so for this client and this server. Inside a
   * transaction only RESET is looked after: whatever is set there may yet be rolled back.
   */
  settle(): void {
    const isOver = this.server!.outstanding.status === Status.Idle;
    if (isOver && this.#tied.isMovable) return this.#moveStatements();
    this.#settle(this.#tied.takeQuestion(isOver), isOver, SETTLE_TRIES);
  }

  #settle(question: Question, isOver: boolean, tries: number): void {
    const server = this.server!;
    const client = this.#client;
    const note = settleNote(question, (findings) => {
      if (this.server === null) return;
      // A tiny statement_timeout of the client's can strike the question; it seldom strikes twice.
      if (findings === null && isOver && tries > 1) return this.#settle(question, isOver, tries - 1);
      client.become('active');
      if (findings === null) return this.pin('setting');
      if (isOver) {
        const asked = question.settings.map((name, index) => [name, findings.values[index]!] as const);
        // What is too large to keep and to replay stays where it is.
        const changes = asked.filter(([, value]) => (value?.length ?? 0) <= VALUE_MAX);
        if (changes.length < asked.length) this.pin('setting');
        server.settings = client.pool.book.withCustom(server.settings, changes);
      }
      this.#tied.answer(findings);
      if (findings.defaults.length === 0 || !this.#restore(server, findings.defaults)) this.adopt();
    });
    this.#ask(server, [settleQuery(question)], note);
  }

  /**
   * What SQL-level PREPARE has made is all that ties the client: it becomes a statement of the protocol level, which has its
   * place on every server (server/statements), and is given up on this one.
   */
  #moveStatements(): void {
    const server = this.server!;
    const client = this.#client;
    const end = (isDone: boolean) => {
      if (this.server === null) return;
      client.become('active');
      this.#tied.moved(isDone);
    };
    const note = preparedNote((statements) => {
      if (this.server === null) return;
      if (statements === null || !this.#naming.mayNameAll(statements)) return end(false);
      if (statements.length === 0) return end(true);
      const done = () => {
        if (this.server !== null) this.#naming.nameAll(statements);
        end(true);
      };
      const dropped = () => {
        server.isDoomed = true; // It may have given up some, and nobody else is to meet the others.
        done();
      };
      this.#ask(server, [deallocateQuery(statements)], { done, dropped });
    });
    this.#ask(server, [preparedQuery], note);
  }

  /**
   * These settings are at the server's default, by RESET: give them this client's default, what it asked for at startup.
   * False: they are as they should be.
   */
  #restore(server: ServerConnection, names: readonly string[]): boolean {
    const client = this.#client;
    const { book } = client.pool;
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
        this.adopt();
        client.become('active');
      },
      dropped: () => {
        if (this.server === null) return;
        client.become('active');
        this.pin('setting');
      },
    });
    return true;
  }

  #ask(server: ServerConnection, statements: readonly string[], note: Note): void {
    this.#client.become('settling');
    if (server.outstanding.status === Status.Idle) server.ask(statements.join('; '), this.#client, note);
    else server.askAside(statements, this.#client, note);
  }

  /** The server owes nothing and keeps nothing for the client: it goes back to whose it is. */
  giveBack(): void {
    const server = this.server!;
    const lender = this.#lender ?? this.#client.pool;
    if (this.end()) lender.recover(server, true);
    else lender.giveBack(server);
  }

  /**
   * The client has gone, and its server, if it has one, goes back in a state that others can use. `isCut`: amid a message or a change of
   * settings. `isTerminated`: what it sent before that runs to its end, as on a server of its own; else it is cancelled.
   */
  abandon(isCut: boolean, isTerminated: boolean): void {
    const { server } = this;
    const lender = this.#lender ?? this.#client.pool;
    const ties = this.#ties;
    const isTouched = ties !== null && (!ties.isClean || ties.wasPinned);
    // Nothing makes the server fit for others again.
    const isSpent = isCut || (ties !== null && (ties.has('load') || ties.has('desync')));
    this.end();
    if (server === null) return;
    // What has not been answered may yet have an effect.
    const isDiscardWanted = isTouched || server.outstanding.size > 0;
    if (isSpent) {
      server.holder = null;
      server.close('the client left it in a state that nobody else can use');
    } else if (server.isFree && !isDiscardWanted) lender.giveBack(server);
    else lender.recover(server, isDiscardWanted, isTerminated);
  }

  /** The lease is over, or its server is lost: nothing ties any more. True: the client was pinned to it. */
  end(): boolean {
    const wasPinned = this.#ties?.wasPinned === true;
    this.#ties?.release();
    this.#ties = null;
    this.#hasSetting = false;
    this.server = null;
    this.#lender = null;
    return wasPinned;
  }
}
