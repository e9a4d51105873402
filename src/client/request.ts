/**
 * What each message of a client becomes on the server that the client holds: passed on as it came, renamed, preceded by
 * something the server lacks, or answered in its turn without the server. Called by client/session for every frame
 * once a server is held.
 *
 * The one idea: the client's names are its own. Its prepared statements stand for shared Statements
 * (server/statements) with one name on all servers; a statement that the present server lacks is parsed there first.
 * What the client believes changes when a message is sent, and is taken back when its entry is dropped, so that
 * pipelines and their errors come out as on a server of its own.
 *
 * Where Postgres answers with an error, the server is made to raise it (a duplicate Parse, a Bind of a name it does not
 * have): then its transaction fails with it, and everything after it is skipped by the same rules.
 */
import * as encode from '../protocol/encode.ts';
import type { Frame } from '../protocol/frame.ts';
import { ClientMessage, ServerMessage, Status, stringEnd } from '../protocol/messages.ts';
import type { Note, RequestKind } from '../protocol/outstanding.ts';
import { error, SqlState } from '../protocol/sqlstate.ts';
import type { Owner, ServerConnection } from '../server/connection.ts';
import type { PoolCounts } from '../server/pool.ts';
import { isOurs, type Statement, type StatementBook } from '../server/statements.ts';
import { type Effects, pinning } from '../sql/effects.ts';
import { harmless, type Judge, TEXT_BYTES_MAX, type Verdict } from '../sql/verdict.ts';
import { header, planChanged, rename, rowShape, withName } from './rewrite.ts';

/** What requests need of the session that they belong to. */
export interface RequestHost extends Owner {
  readonly counts: PoolCounts;
  /** A statement with this verdict ran to its end, or failed. */
  onRan(verdict: Verdict, isOk: boolean): void;
  /** Nothing has been sent to the server in this lease, and no pin keeps it. */
  readonly isFresh: boolean;
  /** The settings that decide which tables a statement's names mean. */
  readonly planSettings: string;
  /** May this statement run? Not when it would pin its client, too many are pinned, and nothing is under way yet. */
  mayRun(verdict: Verdict): boolean;
  /** The server is asked for something first; the present frame is to be handled again after `unblock`. */
  block(): void;
  unblock(): void;
  /** What the client has sent by now is dealt with before anything that it sends later. */
  hold(): void;
}

/**
 * 'again': hand in the same frame once more when the session is unblocked. 'refused': it would pin its client, and too
 * many are pinned already. 'bad': the client broke the protocol.
 */
export type Handled = 'done' | 'again' | 'refused' | { bad: string };

/** An unnamed statement, and what it replaced until its Parse is answered. */
interface Unnamed {
  id: number;
  body: Buffer;
  verdict: Verdict;
  reference: Referenced | null;
  state: 'live' | 'skipped' | 'failed';
  before: Unnamed | null;
}

const HEADER = 5;
/** 'S' in Describe and Close: a prepared statement is meant, not a portal. */
const STATEMENT = 0x53;
/** Postgres' own bound for messages that carry only a name or two (PQ_SMALL_MESSAGE_LIMIT). */
const SMALL_MAX = 10_000;
/** The names at the start of a Bind must end within this many bytes. */
const BIND_NAMES_MAX = 4096;
const FUNCTION_OID_END = HEADER + 4;
/** Prepared statements that one client may have. */
const NAMES_MAX = 10_000;
/** Server-side functions of large objects, which drivers call by FunctionCall: no effect beyond the transaction. */
const largeObjectFunctions = new Set([
  715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458, 3459, 3460,
]);

/** A text that names a prepared statement of the protocol level, which has another name on the server. */
interface Referenced {
  effects: Effects;
  statement: Statement;
}

let lastUnnamedId = 0;

/** How much of a client's message must be seen at once (protocol/frame). */
export function clientWants(type: number, size: number): number {
  switch (type) {
    case ClientMessage.Query:
    case ClientMessage.Parse:
      return size <= TEXT_BYTES_MAX ? size : HEADER;
    case ClientMessage.Bind:
      return Math.min(size, BIND_NAMES_MAX);
    case ClientMessage.FunctionCall:
      return Math.min(size, FUNCTION_OID_END);
    case ClientMessage.CopyData:
    case ClientMessage.CopyFail:
      return HEADER;
    default:
      return Math.min(size, SMALL_MAX);
  }
}

export class Requests {
  readonly #host: RequestHost;
  readonly #judge: Judge;
  readonly #statements: StatementBook;
  /** The client's prepared statements; null while it has none. */
  #names: Map<string, Statement> | null = null;
  /** Its unnamed statement, kept because it may bind it long after the server that parsed it was given back. */
  #unnamed: Unnamed | null = null;
  /** What its unnamed portal would run, and its named portals if that is not harmless. */
  #portal: Verdict = harmless;
  #portals: Map<string, Verdict> | null = null;
  /** What DEALLOCATE in the unnamed portal means. */
  #portalReference: Referenced | null = null;
  /** The verdict of the statement that was sent last. */
  #last: Verdict = harmless;
  /** Counts what ends a batch: Syncs and simple Queries. */
  #batch = 0;
  /** The batch in which a name was last given or given up; for the unnamed statement a number of its own. */
  #changes: Map<string, number> | null = null;
  #unnamedChange = -1;
  /** The client has gone: what is taken back now is nobody's. */
  #isEnded = false;
  /** RESET has been sent: hold what comes behind the message that ends its request. */
  #isHoldWanted = false;
  /** A simple Query waits for the statement that it names; its Parse failed, and the Query will not run. */
  #isBringing = false;
  #isQueryAbandoned = false;
  /** Names whose Parse has not been answered: DEALLOCATE ALL does not reach what was sent after it. */
  #fresh: Set<string> | null = null;
  /** The rest of the message that is passing goes to the server. */
  #isStreaming = false;

  constructor(host: RequestHost, judge: Judge, statements: StatementBook) {
    this.#host = host;
    this.#judge = judge;
    this.#statements = statements;
  }

  /** What runs, or ran last, does nothing but end a transaction. */
  get isCommitting(): boolean {
    return this.#last.isCommit;
  }

  get preparedCount(): number {
    return this.#names?.size ?? 0;
  }

  /** Deals with one piece of a message. */
  handle(frame: Frame, server: ServerConnection): Handled {
    if (!frame.isStart) {
      if (this.#isStreaming) server.forward(frame.source, frame.start, frame.end);
      return 'done';
    }
    if (server.outstanding.isCopyOpen && !isCopyMessage(frame.type)) return this.#passRaw(frame, server);
    switch (frame.type) {
      case ClientMessage.Query:
        return this.#onQuery(frame, server);
      case ClientMessage.Parse:
        return this.#onParse(frame, server);
      case ClientMessage.Bind:
        return this.#onBind(frame, server);
      case ClientMessage.Describe:
      case ClientMessage.Close:
        return this.#onDescribeOrClose(frame, server);
      case ClientMessage.Execute:
        return this.#onExecute(frame, server);
      case ClientMessage.FunctionCall:
        return this.#onFunctionCall(frame, server);
      case ClientMessage.Sync:
        this.#batch++;
        return this.#holdAfter(this.#pass('Sync', frame, server, null));
      case ClientMessage.Flush:
        server.forward(frame.source, frame.start, frame.end);
        return 'done';
      case ClientMessage.CopyData:
        return this.#pass('CopyData', frame, server, null);
      case ClientMessage.CopyDone:
      case ClientMessage.CopyFail:
        return this.#pass('CopyEnd', frame, server, null);
      default:
        return { bad: `invalid frontend message type ${frame.type}` };
    }
  }

  /** The client's prepared statements are gone (DEALLOCATE ALL, DISCARD ALL). */
  forgetNames(): void {
    for (const [name, statement] of this.#names ?? []) if (!this.#fresh?.has(name)) this.#undefine(name, statement);
  }

  /**
   * Answers a message without a server, where that is possible: naming a statement that some server has taken before,
   * and giving a name up. A driver that prepares or closes statements between transactions then waits for nobody.
   */
  answerAlone(frame: Frame): boolean {
    const { source, start, end } = frame;
    if (!frame.isStart || !frame.isEnd) return false;
    const isParse = frame.type === ClientMessage.Parse;
    const nameStart = start + HEADER + (isParse ? 0 : 1);
    const nameEnd = stringEnd(source, nameStart, end);
    if (nameEnd <= nameStart) return false;
    const name = source.toString('latin1', nameStart, nameEnd);
    const known = this.#names?.get(name);
    if (frame.type === ClientMessage.Close && source[start + HEADER] === STATEMENT) {
      if (known !== undefined) this.#undefine(name, known);
      this.#host.deliver(encode.closeComplete);
      return true;
    }
    if (!isParse || known !== undefined) return false;
    const statement = this.#find(source.subarray(nameEnd + 1, end));
    if (!statement.isVerified || !isHarmless(statement.verdict)) return false;
    this.#host.counts.clientParses++;
    this.#define(name, statement);
    this.#host.deliver(encode.parseComplete);
    return true;
  }

  /** The client has gone. */
  close(): void {
    this.#fresh = null;
    this.forgetNames();
    this.#isEnded = true;
  }

  /** After RESET the client's own defaults must be put in force before anything else runs. */
  #holdAfter(handled: Handled): Handled {
    if (this.#isHoldWanted && handled === 'done') {
      this.#isHoldWanted = false;
      this.#host.hold();
    }
    return handled;
  }

  // --- Passing on -----------------------------------------------------------------------------------------------

  /** Passes a message on as it came. */
  #pass(kind: RequestKind, frame: Frame, server: ServerConnection, note: Note | null): Handled {
    this.#isStreaming = server.outstanding.push(kind, this.#host, 'forward', null, note);
    if (this.#isStreaming) server.forward(frame.source, frame.start, frame.end);
    return 'done';
  }

  /** Passes on what has no place here: the server will say so, and end the connection. */
  #passRaw(frame: Frame, server: ServerConnection): Handled {
    this.#isStreaming = true;
    server.forward(frame.source, frame.start, frame.end);
    return 'done';
  }

  /** Passes a message on with another beginning: `head` is the message up to `frame.source[from]`, header included. */
  #passWith(
    kind: RequestKind,
    head: Buffer,
    frame: Frame,
    from: number,
    server: ServerConnection,
    note: Note | null,
  ): Handled {
    this.#isStreaming = server.outstanding.push(kind, this.#host, 'forward', null, note);
    if (!this.#isStreaming) return 'done';
    server.send(head);
    if (from < frame.end) server.forward(frame.source, from, frame.end);
    return 'done';
  }

  /** Asks the server for something of our own, before what the client asks for. */
  #inject(kind: RequestKind, bytes: Buffer, server: ServerConnection, note: Note | null): void {
    if (server.outstanding.push(kind, this.#host, 'swallow', null, note)) server.send(bytes);
  }

  #ran(verdict: Verdict): Note | null {
    if (isHarmless(verdict)) return null;
    if (
      verdict.effects !== null &&
      (verdict.effects.resets.length > 0 || verdict.effects.isResetAll || verdict.effects.isForgetting)
    )
      this.#isHoldWanted = true;
    return {
      done: () => this.#host.onRan(verdict, true),
      dropped: () => this.#host.onRan(verdict, false),
    };
  }

  // --- Simple Query ---------------------------------------------------------------------------------------------

  #onQuery(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    const verdict = this.#judge.judge(source, start + HEADER, frame.isEnd ? end - 1 : start + frame.size);
    if (!this.#host.mayRun(verdict)) return 'refused';
    const reference = this.#referenced(verdict.effects);
    if (reference !== null && !this.#bringForQuery(reference, server)) return 'again';
    if (this.#isQueryAbandoned) return this.#endAbandonedQuery(server);
    this.#hideSequences(verdict, server);
    this.#host.counts.queries++;
    this.#last = verdict;
    // A simple Query drops the unnamed statement and the unnamed portal ("Simple Query").
    // In an open batch a Query may be skipped: then only Sync ends what came before.
    const endsBatch = !server.outstanding.isBatchOpen && !server.outstanding.isDiscarding;
    // Postgres 18 answers the first command after such a batch with XX000: nobody else shall meet that.
    if (server.outstanding.isBatchOpen) server.isDoomed = true;
    const undo = this.#unnamed === null ? null : this.#dropUnnamed(server);
    this.#batch++;
    this.#portal = harmless;
    server.unnamedId = 0;
    const stranger = verdict.effects?.reference ?? null;
    if (reference === null && stranger !== null && isOurs(stranger.name)) {
      // Somebody else's statement: for this client there is none of that name.
      const text = rename(source.subarray(start + HEADER, end), stranger, `${stranger.name}?`);
      const note = {
        ...this.#ran(verdict),
        replaceError: (bytes: Buffer) => withName(bytes, `${stranger.name}?`, stranger.name),
      };
      if (server.outstanding.push('Query', this.#host, 'forward', null, note))
        server.send(encode.message(ClientMessage.Query, text));
      return 'done';
    }
    if (reference === null) {
      const note = this.#forgetting(verdict, server) ?? this.#ran(verdict);
      const handled = this.#pass('Query', frame, server, undo === null ? note : { ...note, ...undo(note) });
      return endsBatch ? this.#holdAfter(handled) : handled;
    }
    const text = rename(source.subarray(start + HEADER, end), reference.effects.reference!, reference.statement.name);
    const note = this.#refer(verdict, reference, server);
    if (server.outstanding.push('Query', this.#host, 'forward', null, note))
      server.send(encode.message(ClientMessage.Query, text));
    return 'done';
  }

  /** currval and lastval at the start of a lease would show what another client has left: let them answer 55000. */
  #hideSequences({ effects }: Verdict, server: ServerConnection): void {
    if (!effects?.pins.includes('sequence') || !this.#host.isFresh) return;
    server.ask('DISCARD SEQUENCES', this.#host, null);
  }

  /** A simple Query drops the unnamed statement, unless it is skipped: gives what to add to its note. */
  #dropUnnamed(server: ServerConnection): (note: Note | null) => Note {
    const before = { unnamed: this.#unnamed, id: server.unnamedId };
    this.#change('');
    this.#unnamed = null;
    return (note) => ({
      dropped: (isSkipped) => {
        note?.dropped?.(isSkipped);
        if (!isSkipped || this.#unnamed !== null) return;
        this.#unnamed = before.unnamed;
        this.#findUnnamed();
        server.unnamedId = before.id;
      },
    });
  }

  /** Makes sure that the server has what EXECUTE or DEALLOCATE in a simple Query names. False: it was asked for it. */
  #bringForQuery({ effects, statement }: Referenced, server: ServerConnection): boolean {
    if (effects.reference!.command === 'execute') {
      const isPresent = this.#prepare(statement, server);
      if (!isPresent) this.#isBringing = true;
      else if (this.#isBringing) {
        this.#isBringing = false;
        this.#isQueryAbandoned = server.outstanding.isDiscarding;
        if (!this.#isQueryAbandoned) this.#inject('Sync', encode.sync, server, null);
      }
      return isPresent;
    }
    // Whatever its text, DEALLOCATE of it succeeds: any statement of this name will do.
    if (!server.statements.has(statement)) server.ask(`PREPARE "${statement.name}" AS SELECT 1`, this.#host, null);
    return true;
  }

  /** The statement could not be parsed: its error stands for the Query's, which still owes a ReadyForQuery. */
  #endAbandonedQuery(server: ServerConnection): Handled {
    this.#isQueryAbandoned = false;
    if (server.outstanding.push('Sync', this.#host, 'forward', null, null)) server.send(encode.sync);
    return 'done';
  }

  /** Gives the server any statement of this name, for a DEALLOCATE in the extended protocol. */
  #bringDummy(statement: Statement, server: ServerConnection): void {
    if (server.statements.has(statement)) return;
    const body = Buffer.from('SELECT 1\0\0\0');
    this.#inject('Parse', encode.parse(statement.name, body), server, { errorIsForward: true });
  }

  /** The statement of the protocol level that a text like `DEALLOCATE x` means, if it is one. */
  #referenced(effects: Effects | null): Referenced | null {
    const statement = effects?.reference ? this.#names?.get(effects.reference.name) : undefined;
    return statement === undefined ? null : { effects: effects!, statement };
  }

  /** DEALLOCATE ALL and DISCARD ALL free the names for what is sent behind them; taken back when they fail. */
  #forgetting(verdict: Verdict, server: ServerConnection): Note | null {
    if (!verdict.effects?.isForgetting) return null;
    this.#isHoldWanted = true;
    const names = [...(this.#names ?? [])];
    for (const [name, statement] of names) {
      this.#undefine(name, statement);
      this.#change(name);
    }
    const present = server.statements.takeAll();
    return {
      done: () => this.#host.onRan(verdict, true),
      dropped: () => {
        server.statements.putBack(present);
        for (const [name, statement] of names) this.#define(name, statement);
        this.#host.onRan(verdict, false);
      },
    };
  }

  /** What EXECUTE or DEALLOCATE of a protocol-level statement does besides; taken back when it fails. */
  #refer(verdict: Verdict, { effects, statement }: Referenced, server: ServerConnection): Note | null {
    const { command, name } = effects.reference!;
    if (command === 'execute') return this.#ran(statement.verdict);
    this.#undefine(name, statement);
    server.statements.remove(statement);
    let isDone = false;
    return {
      message: (type, bytes) => {
        // DEALLOCATE is not undone by what fails after it.
        if (type === ServerMessage.CommandComplete && bytes.includes('DEALLOCATE\0')) isDone = true;
      },
      done: () => this.#host.onRan(verdict, true),
      dropped: () => {
        this.#host.onRan(verdict, false);
        if (isDone) return;
        this.#define(name, statement);
        server.statements.add(statement);
        server.statements.settle(statement);
      },
    };
  }

  // --- Parse ----------------------------------------------------------------------------------------------------

  #onParse(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    if (!frame.isEnd) return this.#onHugeParse(frame, server);
    const nameEnd = stringEnd(source, start + HEADER, end);
    if (nameEnd === -1) return this.#pass('Parse', frame, server, null); // The server says what is wrong.
    const name = source.toString('latin1', start + HEADER, nameEnd);
    this.#host.counts.clientParses++;
    if (name === '') return this.#onParseUnnamed(frame, nameEnd + 1, server);
    if (this.#mustAwait(name, server)) return 'again';
    const known = this.#names?.get(name);
    if (known !== undefined) return this.#onParseAgain(name, known, source.subarray(nameEnd + 1, end), server);
    const statement = this.#find(source.subarray(nameEnd + 1, end));
    if (!this.#host.mayRun(statement.verdict)) return 'refused';
    if ((this.#names?.size ?? 0) >= NAMES_MAX) return this.#refuseName(server);
    this.#change(name);
    this.#define(name, statement);
    this.#fresh ??= new Set();
    this.#fresh.add(name);
    const undo = () => this.#undefine(name, statement);
    const { outstanding } = server;
    if (server.statements.has(statement)) {
      if (outstanding.isStatusCertain && outstanding.status !== Status.Failed) {
        server.statements.touch(statement);
        const note = { done: () => void this.#fresh?.delete(name), dropped: undo };
        outstanding.push('Parse', this.#host, 'synthesize', encode.parseComplete, note);
        return 'done';
      }
      // Whether this Parse would succeed depends on what is still running: have the server do it for real.
      this.#closeOn(server, statement);
    }
    this.#makeRoom(server);
    server.statements.add(statement);
    this.#host.counts.serverParses++;
    const note: Note = {
      done: () => {
        statement.isVerified = true;
        server.statements.settle(statement);
        this.#fresh?.delete(name);
      },
      dropped: () => {
        server.statements.remove(statement);
        undo();
      },
    };
    const handled = this.#passWith(
      'Parse',
      header(ClientMessage.Parse, statement.name, statement.body.length),
      frame,
      nameEnd + 1,
      server,
      note,
    );
    if (statement.description === null && handled === 'done') this.#learnDescription(statement, server);
    return handled;
  }

  /** Clients may describe portals only: ask what the rows look like while the plan is the one that they will rely on. */
  #learnDescription(statement: Statement, server: ServerConnection): void {
    this.#inject('Describe', encode.aboutStatement(ClientMessage.Describe, statement.name), server, {
      message: (type, bytes) => {
        if (type === ServerMessage.RowDescription || type === ServerMessage.NoData)
          statement.description ??= rowShape(bytes);
      },
    });
  }

  #find(body: Buffer): Statement {
    return this.#statements.find(body, this.#host.planSettings, (text) => this.#judgeBody(text));
  }

  #judgeBody(body: Buffer): Verdict {
    const textEnd = stringEnd(body, 0, body.length);
    return this.#judge.judge(body, 0, textEnd === -1 ? body.length : textEnd);
  }

  #define(name: string, statement: Statement): void {
    if (this.#isEnded) return;
    this.#names ??= new Map();
    this.#names.set(name, statement);
    this.#statements.use(statement);
  }

  #undefine(name: string, statement: Statement): void {
    this.#fresh?.delete(name);
    if (this.#names?.get(name) !== statement) return;
    this.#names.delete(name);
    if (this.#names.size === 0) this.#names = null;
    this.#statements.unuse(statement);
  }

  #onParseUnnamed(frame: Frame, bodyStart: number, server: ServerConnection): Handled {
    const { source, end } = frame;
    let body: Buffer = Buffer.from(source.subarray(bodyStart, end));
    let verdict = this.#judgeBody(body);
    if (!this.#host.mayRun(verdict)) return 'refused';
    const reference = this.#referenced(verdict.effects);
    if (reference !== null) {
      if (reference.effects.reference!.command === 'deallocate') this.#bringDummy(reference.statement, server);
      else if (!this.#prepare(reference.statement, server)) return 'again';
      body = rename(body, reference.effects.reference!, reference.statement.name);
      if (reference.effects.reference!.command === 'execute') verdict = reference.statement.verdict;
    }
    this.#hideSequences(verdict, server);
    this.#change('');
    const id = ++lastUnnamedId;
    const idBefore = server.unnamedId;
    const unnamed: Unnamed = { id, body, verdict, reference, state: 'live', before: this.#unnamed };
    this.#unnamed = unnamed;
    server.unnamedId = id;
    this.#host.counts.serverParses++;
    const note: Note = {
      done: () => {
        unnamed.before = null;
      },
      dropped: (isSkipped) => {
        // Parse drops the unnamed statement before it looks at the text; a Parse that is skipped drops nothing.
        unnamed.state = isSkipped ? 'skipped' : 'failed';
        this.#findUnnamed();
        if (server.unnamedId === id) server.unnamedId = isSkipped ? idBefore : 0;
      },
    };
    if (reference === null) return this.#pass('Parse', frame, server, note);
    if (server.outstanding.push('Parse', this.#host, 'forward', null, note)) server.send(encode.parse('', body));
    return 'done';
  }

  /** What `name` stands for changes with a message of the present batch. */
  #change(name: string): void {
    if (name === '') this.#unnamedChange = this.#batch;
    else {
      this.#changes ??= new Map();
      this.#changes.set(name, this.#batch);
    }
  }

  /**
   * An earlier batch, not answered yet, changes what `name` stands for: if it fails, it does not. True: the message must
   * wait until that is known. (In its own batch a change fails together with what builds on it.)
   */
  #mustAwait(name: string, server: ServerConnection): boolean {
    if (server.outstanding.size === 0) {
      this.#changes = null;
      return false;
    }
    const batch = name === '' ? this.#unnamedChange : this.#changes?.get(name);
    if (batch === undefined || batch === -1 || batch === this.#batch || server.outstanding.isBatchOpen) return false;
    this.#host.hold();
    return true;
  }

  /** The unnamed statement is the last one whose Parse was not skipped, or none when that one failed. */
  #findUnnamed(): void {
    let unnamed = this.#unnamed;
    while (unnamed !== null && unnamed.state !== 'live') unnamed = unnamed.state === 'skipped' ? unnamed.before : null;
    this.#unnamed = unnamed;
  }

  /** A name that is in use: let the server say so (42P05), under the client's name. */
  #onParseAgain(name: string, known: Statement, body: Buffer, server: ServerConnection): Handled {
    if (!this.#prepare(known, server)) return 'again';
    const note = { replaceError: (bytes: Buffer) => withName(bytes, known.name, name) };
    if (server.outstanding.push('Parse', this.#host, 'forward', null, note))
      server.send(encode.parse(known.name, body));
    return 'done';
  }

  /** No more names for this client: the server is made to raise an error, which is then ours. */
  #refuseName(server: ServerConnection): Handled {
    const known = this.#names!.values().next().value!;
    if (!this.#prepare(known, server)) return 'again';
    const refusal = error(SqlState.ConfigurationLimit, `a session may have ${NAMES_MAX} prepared statements`, {
      hint: 'close what is no longer needed',
    });
    const note = { replaceError: () => encode.errorResponse(refusal) };
    if (server.outstanding.push('Parse', this.#host, 'forward', null, note))
      server.send(encode.parse(known.name, known.body));
    return 'done';
  }

  /** A text too large to keep: it streams to the server under the client's own name, and the session is opaque. */
  #onHugeParse(frame: Frame, server: ServerConnection): Handled {
    this.#host.onRan(this.#judge.judge(frame.source, frame.start, frame.start + frame.size), true);
    this.#unnamed = null;
    server.unnamedId = 0;
    return this.#pass('Parse', frame, server, null);
  }

  /** Closes a statement on the server; when that is skipped, it is still there. */
  #closeOn(server: ServerConnection, statement: Statement): void {
    server.statements.remove(statement);
    this.#inject('Close', encode.aboutStatement(ClientMessage.Close, statement.name), server, {
      dropped: () => {
        server.statements.add(statement);
        server.statements.settle(statement);
      },
    });
  }

  #makeRoom(server: ServerConnection): void {
    const victim = server.statements.victim();
    if (victim !== null) this.#closeOn(server, victim);
  }

  /**
   * Makes sure that the server has the statement. False: it was asked for it; the session is blocked until it answers.
   * Its description is compared with the one that clients were given: a plan whose rows have changed their shape is
   * an error for those who rely on it ("cached plan must not change result type"), on any server.
   */
  #prepare(statement: Statement, server: ServerConnection): boolean {
    if (server.statements.has(statement)) {
      server.statements.touch(statement);
      return true;
    }
    this.#makeRoom(server);
    server.statements.add(statement);
    this.#host.counts.serverParses++;
    this.#inject('Parse', encode.parse(statement.name, statement.body), server, {
      errorIsForward: true,
      done: () => server.statements.settle(statement),
      dropped: () => server.statements.remove(statement),
    });
    const description: { bytes: Buffer | null } = { bytes: null };
    this.#inject('Describe', encode.aboutStatement(ClientMessage.Describe, statement.name), server, {
      errorIsForward: true,
      message: (type, bytes) => {
        if (type === ServerMessage.RowDescription || type === ServerMessage.NoData) description.bytes = bytes;
      },
      done: () => {
        statement.isVerified = true;
        if (!this.#isAsDescribed(statement, description.bytes)) server.statements.markChanged(statement);
        this.#host.unblock();
      },
      dropped: () => this.#host.unblock(),
    });
    if (server.outstanding.isDiscarding) return true; // Everything is skipped: the frame will be, too.
    server.send(encode.flush);
    this.#host.block();
    return false;
  }

  /** Remembers what a server says that the rows look like; false: it is not what another has said before. */
  #isAsDescribed(statement: Statement, bytes: Buffer | null): boolean {
    if (bytes === null) return true;
    const description = rowShape(bytes);
    statement.description ??= description;
    if (statement.description.equals(description)) return true;
    this.#statements.forget(statement);
    return false;
  }

  // --- Bind, Describe, Close, Execute ---------------------------------------------------------------------------

  #onBind(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    const portalEnd = stringEnd(source, start + HEADER, end);
    const nameEnd = portalEnd === -1 ? -1 : stringEnd(source, portalEnd + 1, end);
    if (nameEnd === -1) {
      return frame.isEnd
        ? this.#pass('Bind', frame, server, null)
        : { bad: 'the names in a Bind message are too long' };
    }
    this.#host.counts.binds++;
    const portal = source.toString('latin1', start + HEADER, portalEnd);
    this.#setPortal(portal, harmless);
    if (nameEnd === portalEnd + 1) {
      if (this.#mustAwait('', server)) return 'again';
      const reference = this.#unnamed?.reference ?? null;
      if (reference?.effects.reference?.command === 'execute' && !this.#prepare(reference.statement, server))
        return 'again';
      this.#bringUnnamed(server);
      this.#setPortal(portal, this.#unnamed?.verdict ?? harmless);
      if (portal === '') this.#portalReference = this.#unnamed?.reference ?? null;
      return this.#pass('Bind', frame, server, null);
    }
    const clientName = source.toString('latin1', portalEnd + 1, nameEnd);
    if (this.#mustAwait(clientName, server)) return 'again';
    const statement = this.#names?.get(clientName);
    if (statement === undefined) return this.#passUnknown('Bind', portal, frame, portalEnd + 1, nameEnd, server);
    if (!this.#host.mayRun(statement.verdict)) return 'refused';
    this.#hideSequences(statement.verdict, server);
    if (!this.#prepare(statement, server)) return 'again';
    this.#setPortal(portal, statement.verdict);
    const isChanged = server.statements.isChanged(statement);
    // A name that no server has makes the server raise an error, so that its transaction fails as it should.
    const name = isChanged ? `${statement.name}_changed` : statement.name;
    const rest = start + frame.size - (nameEnd + 1);
    const note: Note = isChanged ? { replaceError: planChanged } : this.#planNote(statement, clientName, server);
    return this.#passWith(
      'Bind',
      header(ClientMessage.Bind, `${portal}\0${name}`, rest),
      frame,
      nameEnd + 1,
      server,
      note,
    );
  }

  /** Watches for a plan that became invalid: then the statement is forgotten, so that the next Parse is real. */
  #planNote(statement: Statement, name: string, server: ServerConnection): Note {
    return {
      replaceError: (bytes) => {
        // Somebody has closed it behind our back: the next one to need it parses it again.
        if (bytes.includes('C26000\0') && bytes.includes(statement.name)) server.statements.remove(statement);
        if (bytes.includes('C0A000\0') && bytes.includes('RRevalidateCachedQuery\0')) {
          this.#statements.forget(statement);
        }
        return withName(bytes, statement.name, name);
      },
    };
  }

  /** A statement that the client does not have: the server answers 26000, also when the name is one of ours. */
  #passUnknown(
    kind: 'Bind' | 'Describe',
    portal: string | null,
    frame: Frame,
    nameStart: number,
    nameEnd: number,
    server: ServerConnection,
  ): Handled {
    const name = frame.source.toString('latin1', nameStart, nameEnd);
    if (!isOurs(name)) return this.#pass(kind, frame, server, null);
    const other = `${name}?`;
    const note = { replaceError: (bytes: Buffer) => withName(bytes, other, name) };
    const rest = frame.start + frame.size - (nameEnd + 1);
    const head =
      portal === null
        ? header(ClientMessage.Describe, `S${other}`, rest)
        : header(ClientMessage.Bind, `${portal}\0${other}`, rest);
    return this.#passWith(kind, head, frame, nameEnd + 1, server, note);
  }

  #setPortal(portal: string, verdict: Verdict): void {
    if (portal === '') {
      this.#portal = verdict;
      this.#portalReference = null;
    } else if (!isHarmless(verdict)) {
      this.#portals ??= new Map();
      this.#portals.set(portal, verdict);
    } else this.#portals?.delete(portal);
  }

  /** Gives the server this client's unnamed statement, or takes somebody else's away. */
  #bringUnnamed(server: ServerConnection): void {
    const id = this.#unnamed?.id ?? 0;
    if (server.unnamedId === id) return;
    server.unnamedId = id;
    const forget = () => {
      server.unnamedId = -1;
    };
    const forgotten = { errorIsForward: true, dropped: forget };
    if (this.#unnamed !== null) this.#inject('Parse', encode.parse('', this.#unnamed.body), server, forgotten);
    else this.#inject('Close', encode.aboutStatement(ClientMessage.Close, ''), server, forgotten);
  }

  #onDescribeOrClose(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    const kind = frame.type === ClientMessage.Describe ? 'Describe' : 'Close';
    const isStatement = source[start + HEADER] === STATEMENT;
    const nameEnd = stringEnd(source, start + HEADER + 1, end);
    if (!isStatement || nameEnd === -1) return this.#pass(kind, frame, server, null);
    const name = source.toString('latin1', start + HEADER + 1, nameEnd);
    if (this.#mustAwait(name, server)) return 'again';
    if (kind === 'Close') this.#change(name);
    if (name === '') {
      if (kind === 'Describe') this.#bringUnnamed(server);
      else if (this.#unnamed !== null) {
        const undo = this.#dropUnnamed(server)(null);
        server.unnamedId = 0;
        return this.#pass(kind, frame, server, undo);
      } else server.unnamedId = 0;
      return this.#pass(kind, frame, server, null);
    }
    const statement = this.#names?.get(name);
    if (kind === 'Close' && (statement !== undefined || isOurs(name)))
      return this.#close(name, statement ?? null, server);
    if (kind === 'Close') return this.#pass(kind, frame, server, null);
    if (statement === undefined) return this.#passUnknown('Describe', null, frame, start + HEADER + 1, nameEnd, server);
    if (!this.#prepare(statement, server)) return 'again';
    const note: Note = { replaceError: (bytes) => withName(bytes, statement.name, name) };
    if (statement.description === null) {
      note.message = (type, bytes) => {
        if (type === ServerMessage.RowDescription || type === ServerMessage.NoData)
          statement.description ??= rowShape(bytes);
      };
    }
    const bytes = encode.aboutStatement(ClientMessage.Describe, statement.name);
    if (server.outstanding.push(kind, this.#host, 'forward', null, note)) server.send(bytes);
    return 'done';
  }

  /** Closing a name never reaches the server: others may use the statement there. */
  #close(name: string, statement: Statement | null, server: ServerConnection): Handled {
    if (statement !== null) this.#undefine(name, statement);
    const note = statement === null ? null : { dropped: () => this.#define(name, statement) };
    server.outstanding.push('Close', this.#host, 'synthesize', encode.closeComplete, note);
    return 'done';
  }

  #onExecute(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    this.#host.counts.queries++;
    let verdict = this.#portal;
    if (source[start + HEADER] === 0) {
      const reference = this.#portalReference;
      if (reference !== null) return this.#pass('Execute', frame, server, this.#refer(verdict, reference, server));
    } else {
      const nameEnd = stringEnd(source, start + HEADER, end);
      verdict = this.#portals?.get(source.toString('latin1', start + HEADER, nameEnd)) ?? harmless;
    }
    this.#last = verdict;
    return this.#pass('Execute', frame, server, this.#forgetting(verdict, server) ?? this.#ran(verdict));
  }

  /** Function Call names its function by oid. */
  #onFunctionCall(frame: Frame, server: ServerConnection): Handled {
    this.#host.counts.queries++;
    const oid = frame.end - frame.start >= FUNCTION_OID_END ? frame.source.readUInt32BE(frame.start + HEADER) : 0;
    if (largeObjectFunctions.has(oid)) return this.#pass('FunctionCall', frame, server, null);
    return this.#pass('FunctionCall', frame, server, this.#ran(functionCall));
  }
}

/** What a function does that is called by its oid is not known. */
const functionCall: Verdict = { ...harmless, effects: pinning('function') };

/** What a client may send while the server reads CopyData. */
function isCopyMessage(type: number): boolean {
  switch (type) {
    case ClientMessage.CopyData:
    case ClientMessage.CopyDone:
    case ClientMessage.CopyFail:
    case ClientMessage.Flush:
    case ClientMessage.Sync:
      return true;
    default:
      return false;
  }
}

function isHarmless({ effects, shape }: Verdict): boolean {
  return effects === null && shape === null;
}
