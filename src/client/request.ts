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
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, Status, stringEnd } from '../protocol/messages.ts';
import { both, type Note, type RequestKind } from '../protocol/outstanding.ts';
import { error, SqlState } from '../protocol/sqlstate.ts';
import type { ServerConnection } from '../server/connection.ts';
import { isOurs, type Statement } from '../server/statements.ts';
import { harmless, isHarmless, type Judge, opaque, type Verdict } from '../sql/verdict.ts';
import { assert } from '../util/errors.ts';
import { likeCall, likeDeallocate, likeExecute, likePrepare } from './alike.ts';
import { Alone } from './alone.ts';
import { FAIL } from './block.ts';
import { FUNCTION_OID_END } from './connection.ts';
import { type CopyState, copyMove } from './copy.ts';
import { type Bringing, bring, bringForQuery, freeAll, freeMentioned, leavesFirst } from './mentions.ts';
import { NAMES_MAX, NAMES_MIB_MAX, Names } from './names.ts';
import {
  closeOn,
  inject,
  isUnderstood,
  learnDescription,
  makeRoom,
  planNote,
  prepare,
  remembering,
} from './prepare.ts';
import type { RequestHost } from './request-host.ts';
import { header, planChanged, withName } from './rewrite.ts';
import type { Prepared } from './settle.ts';
import { strangeName, type Translation, translate } from './translate.ts';
import { harmlessPortal, type Portal, UNKNOWN, Unnamed } from './unnamed.ts';

/**
 * 'again': hand in the same frame once more when the session is unblocked. 'refused': it would pin its client, and too
 * many are pinned already. 'bad': the client broke the protocol.
 */
export type Handled = 'done' | 'again' | 'refused' | { bad: string };

const HEADER = 5;
/** 'S' in Describe and Close: a prepared statement is meant, not a portal. */
const STATEMENT = 0x53;
export class Requests {
  readonly #host: RequestHost;
  readonly #judge: Judge;
  readonly #names: Names;
  readonly #unnamed = new Unnamed();
  /** What needs no server. */
  readonly alone: Alone;
  /** What its named portals would run, if that is not harmless; until the transaction is over. */
  #portals: Map<string, Portal> | null = null;
  /** The verdict of the statement that was sent last. */
  #last: Verdict = harmless;
  /** How many have been sent since `takeNumber`. */
  #statements = 0;
  /** Names that SQL-level PREPARE has given, or may have, while the client is pinned: the server knows them as they are. */
  #sqlNames: Set<string> | null = null;
  /** What the client has sent by now is dealt with before anything that it sends later: RESET was sent, say. */
  #isHolding = false;
  /** The status of a ReadyForQuery that the client is given when that is so; 0: none. */
  #keptStatus = 0;
  /** RESET has been sent: hold what comes behind the message that ends its request. */
  #isHoldWanted = false;
  /** The batch that is open does more than name and describe statements, or may. */
  #hasRun = false;
  /** How far a simple Query is with the statements that its text names. */
  #bringing: Bringing = 'no';
  #copy: CopyState = 'none';
  /** The rest of the message that is passing goes to the server. */
  #isStreaming = false;

  constructor(host: RequestHost, judge: Judge) {
    this.#host = host;
    this.#judge = judge;
    this.#names = new Names(host.pool.statements);
    this.alone = new Alone(host, judge, this.#names, this.#unnamed);
  }

  /** What was sent last commits, if it succeeds: COMMIT, or LISTEN and UNLISTEN outside a transaction. */
  get hasCommitted(): boolean {
    return this.#last.isCommit || this.#last.listening !== null;
  }

  /** What runs, or ran last, does nothing but end a transaction. */
  get isCommitting(): boolean {
    return this.#last.isCommit;
  }

  /** A lease begins: nothing has run in it. */
  start(): void {
    this.#last = harmless;
    this.#statements = 0;
    this.#hasRun = false;
  }

  /** A transaction is over, and with it its portals. */
  endTransaction(): void {
    this.#portals = null;
  }

  get preparedCount(): number {
    return this.#names.size;
  }

  /** Deals with one piece of a message. */
  handle(frame: Frame, server: ServerConnection): Handled {
    if (!frame.isStart) {
      if (this.#isStreaming) server.forward(frame.source, frame.start, frame.end);
      return 'done';
    }
    if (this.#copy !== 'none' || server.outstanding.isCopyOpen) {
      const handled = this.#inCopy(frame, server);
      if (handled !== null) return handled;
    }
    switch (frame.type) {
      case ClientMessage.Query:
        return this.#onQuery(frame, server);
      case ClientMessage.Parse:
        return this.#onParse(frame, server);
      case ClientMessage.Bind:
        this.#hasRun = true;
        return this.#onBind(frame, server);
      case ClientMessage.Describe:
      case ClientMessage.Close:
        return this.#onDescribeOrClose(frame, server);
      case ClientMessage.Execute:
        this.#hasRun = true;
        return this.#onExecute(frame, server);
      case ClientMessage.FunctionCall:
        return this.#onFunctionCall(frame, server);
      case ClientMessage.Sync:
        // As for PgBouncer, a batch that runs nothing counts as well.
        if (!this.#hasRun && server.outstanding.isBatchOpen) this.#host.pool.counts.queries++;
        // Amid a COPY it may end nothing.
        this.#hasRun = this.#copy !== 'none' || server.outstanding.isCopyIn;
        this.#names.endBatch();
        return this.#holdAfter(this.#pass('Sync', frame, server, this.#isHoldWanted ? this.#keeping() : null));
      case ClientMessage.Flush:
        return this.#onFlush(frame, server);
      case ClientMessage.CopyData:
        return this.#pass('CopyData', frame, server, null);
      case ClientMessage.CopyDone:
      case ClientMessage.CopyFail:
        return this.#pass('CopyEnd', frame, server, null);
      default:
        return { bad: `invalid frontend message type ${frame.type}` };
    }
  }

  /** What is known of the statement that was sent last. */
  get last(): Verdict {
    return this.#last;
  }

  /** The number of the shape of what has run since this was asked last; 0: not known, or there were several. */
  takeNumber(): number {
    const number = this.#statements === 1 ? this.#last.number : 0;
    this.#statements = 0;
    return number;
  }

  /** The client's prepared statements are gone (DEALLOCATE ALL, DISCARD ALL). */
  forgetNames(): void {
    this.#names.forget();
    this.#sqlNames = null;
  }

  /** May statements of SQL-level PREPARE become statements of the protocol level? */
  mayNameAll(statements: readonly Prepared[]): boolean {
    const isNew = statements.every(({ name }) => this.#names.get(name) === undefined && !isOurs(name));
    return isNew && !this.#names.isFull && this.#names.size + statements.length <= NAMES_MAX;
  }

  nameAll(statements: readonly Prepared[]): void {
    for (const { name, body } of statements) {
      this.#names.define(name, this.alone.find(body));
      this.#sqlNames?.delete(name);
    }
  }

  /** The server, which owes this client nothing, learns of the transaction that the client is in. */
  open(server: ServerConnection): void {
    const block = this.alone.leaveBlock();
    if (block === 'none') return;
    if (block === 'failed') return server.ask(FAIL, this.#host, null);
    // In the transaction it would be too late: sequences would be those of whoever had the server before.
    if (this.alone.first?.effects?.pins.includes('sequence')) server.ask('DISCARD SEQUENCES', this.#host, null);
    this.#names.settle();
    this.#hasRun = true;
    server.begin(block.sql, block.hasPortal, this.#host);
    const { control } = this.#unnamed.verdict;
    if (control?.kind === 'begin' && control.sql === block.sql) server.unnamedId = this.#unnamed.id;
  }

  /** Sends a read that `findRead` has found: `message` and the `rest` messages in `reader`. */
  ride(message: Frame, rest: number, reader: FrameReader, server: ServerConnection): void {
    // Of what this client has sent before, all is answered.
    this.#names.settle();
    this.#copy = 'none';
    let isDone = this.handle(message, server) === 'done';
    for (let left = rest; left > 0; left--) {
      reader.next(message);
      isDone &&= this.handle(message, server) === 'done';
    }
    assert(isDone, 'a read that rides waits for nothing');
  }

  /** The client has gone. */
  close(): void {
    this.#names.close();
  }

  get isHolding(): boolean {
    return this.#isHolding;
  }

  /** What was sent is dealt with. Gives the status of the ReadyForQuery that the client is still to be given; 0: none. */
  endHold(): number {
    const status = this.#keptStatus;
    this.#isHolding = false;
    this.#keptStatus = 0;
    return status;
  }

  /** A note for what ends the request of a RESET: the client hears of its end when its own defaults are in force. */
  #keeping(): Note {
    return {
      ready: (status) => {
        this.#keptStatus = status;
      },
    };
  }

  /** After RESET the client's own defaults must be put in force before anything else runs. */
  #holdAfter(handled: Handled): Handled {
    if (this.#isHoldWanted && handled === 'done') {
      this.#isHoldWanted = false;
      this.#isHolding = true;
    }
    return handled;
  }

  /** Whether a message is right here depends on how an earlier batch ends: it must wait. */
  #mustAwait(name: string, server: ServerConnection): boolean {
    if (server.outstanding.size === 0) {
      this.#names.settle();
      return false;
    }
    if (!this.#names.isInDoubt(name)) return false;
    this.#awaitAnswers(server);
    return true;
  }

  /** A message behind COPY FROM STDIN; null: it is treated like any other. */
  #inCopy(frame: Frame, server: ServerConnection): Handled | null {
    const { outstanding } = server;
    if (outstanding.size === 0) {
      this.#copy = 'none';
      return null;
    }
    const { does, state } = copyMove(this.#copy, frame.type, outstanding.isCopyOpen);
    this.#copy = state;
    switch (does) {
      case 'pass':
        return null;
      case 'raw':
        return this.#passRaw(frame, server);
      case 'resync':
        server.resync(this.#host);
        return this.#awaitAnswers(server);
      case 'await':
        return this.#awaitAnswers(server);
      default:
        return does satisfies never;
    }
  }

  #awaitAnswers(server: ServerConnection): Handled {
    server.askForReplies();
    this.#isHolding = true;
    return 'again';
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

  /** Passes on another message in place of one. */
  #passInstead(kind: RequestKind, bytes: Buffer, server: ServerConnection, note: Note | null): Handled {
    this.#isStreaming = false;
    if (server.outstanding.push(kind, this.#host, 'forward', null, note)) server.send(bytes);
    return 'done';
  }

  /** A note for a statement that runs: tells the session of its effects. */
  #ran(verdict: Verdict): Note | null {
    if (isHarmless(verdict)) return null;
    const { effects } = verdict;
    if (effects !== null && (effects.resets.length > 0 || effects.isResetAll || effects.isForgetting))
      this.#isHoldWanted = true;
    return {
      done: () => this.#host.onRan(verdict, true),
      dropped: () => this.#host.onRan(verdict, false),
    };
  }

  /** As `#ran`, for the statements that a text executes, each once however often it is named: notes of notes have a depth that the stack bounds. */
  #ranAll({ mentions }: Translation): Note | null {
    const executed = mentions.filter(({ reference }) => reference.command === 'execute');
    const verdicts = new Set(executed.map(({ statement }) => statement.verdict));
    for (const verdict of verdicts) this.#noteSetting(verdict);
    const notes = [...verdicts].map((verdict) => this.#ran(verdict)).filter((note) => note !== null);
    if (notes.length === 0) return null;
    return {
      done() {
        for (const note of notes) note.done?.();
      },
      dropped(isSkipped) {
        for (const note of notes) note.dropped?.(isSkipped);
      },
    };
  }

  /** A note for a text that runs: its own effects, and those of the statements that it names. */
  #running(verdict: Verdict, translation: Translation | null, server: ServerConnection): Note | null {
    this.#last = verdict;
    this.#statements++;
    this.#host.onRunning(verdict);
    const { effects } = verdict;
    if (effects === null) return this.#ran(verdict);
    if (effects.isCopyIn) this.#copy = 'asked';
    for (const { command, name } of effects.references) {
      const isOfSql = this.#names.get(name) === undefined;
      if (command === 'prepare' && isOfSql) this.#addSqlName(name);
      // Nobody knows what its text says.
      if (command === 'execute' && isOfSql) this.#host.lease.noteSetting();
    }
    if (effects.isForgetting) return this.#forgetting(verdict, server);
    let note = this.#ran(verdict);
    if (translation === null) return note;
    note = both(note, this.#ranAll(translation));
    note = both(note, freeMentioned(this.#names, verdict, translation, server));
    return both(note, { replaceError: translation.replaceError });
  }

  #addSqlName(name: string): void {
    if (this.#host.lease.isFresh) this.#sqlNames = null; // Nothing is left of an earlier pin.
    this.#sqlNames ??= new Set();
    this.#sqlNames.add(name);
  }

  // --- Texts that name prepared statements ----------------------------------------------------------------------

  /** DEALLOCATE ALL and DISCARD ALL free the names for what is sent behind them; taken back when they fail. */
  #forgetting(verdict: Verdict, server: ServerConnection): Note {
    this.#isHoldWanted = true;
    const takeBack = freeAll(this.#names, server);
    return {
      done: () => this.#host.onRan(verdict, true),
      dropped: () => {
        takeBack();
        this.#host.onRan(verdict, false);
      },
    };
  }

  // --- Simple Query ---------------------------------------------------------------------------------------------

  #onQuery(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    // What is still to come of a text that has not arrived whole may do anything.
    const verdict = frame.isEnd ? this.#judge.judge(source, start + HEADER, end - 1) : opaque;
    if (!this.#host.lease.mayRun(verdict)) return 'refused';
    for (const { name } of verdict.effects?.references ?? []) if (this.#mustAwait(name, server)) return 'again';
    const translation = translate(source.subarray(start + HEADER, end), verdict, this.#names);
    if (translation !== null) {
      const isUncertain = this.#bringing === 'no' && server.outstanding.size > 0;
      if (isUncertain && leavesFirst(translation, server)) return this.#awaitAnswers(server);
      const bringing = bringForQuery(this.#bringing, this.#host, translation, server);
      this.#bringing = bringing === 'failed' ? 'no' : bringing;
      // Its error stands for that of the Query, which owes a ReadyForQuery.
      if (bringing === 'failed') return this.#passInstead('Sync', encode.sync, server, null);
      if (bringing !== 'no') return 'again';
    }
    this.#hideSequences(verdict, server);
    this.#noteSetting(verdict);
    this.#host.pool.counts.queries++;
    // In an open batch a Query may be skipped: then only Sync ends what came before.
    const endsBatch = !server.outstanding.isBatchOpen && !server.outstanding.isDiscarding;
    // Postgres 18 answers the first command after such a batch with XX000: nobody else shall meet that.
    if (server.outstanding.isBatchOpen) {
      server.isDoomed = true;
      this.#hasRun = true;
    }
    // A simple Query drops the unnamed statement and the unnamed portal ("Simple Query").
    const undo = this.#unnamed.drop(server);
    if (undo !== null) this.#names.change('');
    this.#unnamed.portal = harmlessPortal;
    const running = both(this.#running(verdict, translation, server), undo);
    this.#names.endBatch(); // Behind what its text changes.
    const note = endsBatch && this.#isHoldWanted ? both(running, this.#keeping()) : running;
    const handled =
      translation === null
        ? this.#pass('Query', frame, server, note)
        : this.#passInstead('Query', encode.message(ClientMessage.Query, translation.text), server, note);
    return endsBatch ? this.#holdAfter(handled) : handled;
  }

  /** currval and lastval at the start of a lease would show what another client has left: let them answer 55000. */
  #hideSequences({ effects }: Verdict, server: ServerConnection): void {
    if (!effects?.pins.includes('sequence') || !this.#host.lease.isFresh) return;
    server.ask('DISCARD SEQUENCES', this.#host, null);
  }

  // --- Parse ----------------------------------------------------------------------------------------------------

  #onParse(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    if (!frame.isEnd) return this.#onHugeParse(frame, server);
    const nameEnd = stringEnd(source, start + HEADER, end);
    if (nameEnd === -1) return this.#pass('Parse', frame, server, null); // The server says what is wrong.
    const name = source.toString('latin1', start + HEADER, nameEnd);
    this.#host.pool.counts.clientParses++;
    if (name === '') return this.#onParseUnnamed(frame, nameEnd + 1, server);
    if (this.#mustAwait(name, server)) return 'again';
    const known = this.#names.get(name);
    if (known !== undefined) return this.#onParseAgain(name, known, source.subarray(nameEnd + 1, end), server);
    const statement = this.alone.find(source.subarray(nameEnd + 1, end));
    if (!this.#host.lease.mayRun(statement.verdict)) return 'refused';
    if (this.#sqlNames?.has(name)) return this.#onParseSqlName(name, statement, server);
    if (this.#names.isFull) return this.#refuseName(server);
    const translation = translate(statement.body, statement.verdict, this.#names);
    if (translation === null) return this.#parse(name, statement, statement, server, frame, nameEnd + 1);
    if (!bring(this.#host, translation, server)) return 'again';
    return this.#parse(name, statement, this.#findTranslated(translation), server, null, 0);
  }

  /**
   * The client's `name` is to stand for `statement`, which servers know as `present` (the same, if its text needs no
   * translation). The Parse is answered by us where the server has it already; otherwise it goes to the server, its
   * body from `frame` if there is one.
   */
  #parse(
    name: string,
    statement: Statement,
    present: Statement,
    server: ServerConnection,
    frame: Frame | null,
    bodyStart: number,
  ): Handled {
    const { outstanding } = server;
    this.#names.change(name);
    this.#names.define(name, statement);
    this.#names.expect(name);
    const undo = () => this.#names.undefine(name, statement);
    if (server.statements.has(present)) {
      if (outstanding.isStatusCertain && outstanding.status !== Status.Failed) {
        server.statements.touch(present);
        const note = { done: () => this.#names.confirm(name), dropped: undo };
        outstanding.push('Parse', this.#host, 'synthesize', encode.parseComplete, note);
        return 'done';
      }
      // Whether this Parse would succeed depends on what is still running: have the server do it for real.
      closeOn(this.#host, server, present);
    }
    makeRoom(this.#host, server);
    server.statements.add(present);
    this.#host.pool.counts.serverParses++;
    const note: Note = {
      done: () => {
        present.isVerified = true;
        server.statements.become(present, 'ready');
        this.#names.confirm(name);
      },
      dropped: () => {
        server.statements.remove(present);
        undo();
      },
    };
    if (frame === null) this.#passInstead('Parse', encode.parse(present.name, present.body), server, note);
    else
      this.#passWith(
        'Parse',
        header(ClientMessage.Parse, present.name, present.body.length),
        frame,
        bodyStart,
        server,
        note,
      );
    if (present.description === null) learnDescription(this.#host, present, server);
    return 'done';
  }

  #onParseUnnamed(frame: Frame, bodyStart: number, server: ServerConnection): Handled {
    const body: Buffer = Buffer.from(frame.source.subarray(bodyStart, frame.end));
    const verdict = this.alone.judgeBody(frame.source, bodyStart, frame.end);
    if (!this.#host.lease.mayRun(verdict)) return 'refused';
    const translation = translate(body, verdict, this.#names);
    if (translation !== null && !bring(this.#host, translation, server)) return 'again';
    this.#hideSequences(verdict, server);
    this.#names.change('');
    const note = this.#unnamed.replace(body, verdict, server);
    this.#host.pool.counts.serverParses++;
    if (translation === null) return this.#pass('Parse', frame, server, note);
    server.unnamedId = UNKNOWN;
    return this.#passInstead('Parse', encode.parse('', translation.text), server, note);
  }

  /** A name that is in use: let the server say so (42P05), under the client's name. */
  #onParseAgain(name: string, known: Statement, body: Buffer, server: ServerConnection): Handled {
    if (!prepare(this.#host, known, server)) return 'again';
    const note = { replaceError: (bytes: Buffer) => withName(bytes, known.name, name) };
    return this.#passInstead('Parse', encode.parse(known.name, body), server, note);
  }

  /**
   * A name that SQL-level PREPARE may have given: the server knows, so it is asked under that name. If it was free, the
   * client is as pinned by its statement as by one of SQL.
   */
  #onParseSqlName(name: string, statement: Statement, server: ServerConnection): Handled {
    const ours = isOurs(name) ? strangeName(name) : name;
    const note = both(this.#ran(statement.verdict), this.#ran(likePrepare));
    return this.#passInstead(
      'Parse',
      encode.parse(ours, statement.body),
      server,
      both(note, { replaceError: (bytes: Buffer) => withName(bytes, ours, name) }),
    );
  }

  /** No more names for this client: the server is made to raise an error, which is then ours. */
  #refuseName(server: ServerConnection): Handled {
    const known = this.#names.any();
    if (!prepare(this.#host, known, server)) return 'again';
    const most = `${NAMES_MAX} prepared statements, and ${NAMES_MIB_MAX} MiB of them`;
    const refusal = error(SqlState.ConfigurationLimit, `a session may have ${most}`, {
      hint: 'close what is no longer needed',
    });
    const note = { replaceError: () => encode.errorResponse(refusal) };
    return this.#passInstead('Parse', encode.parse(known.name, known.body), server, note);
  }

  /** A text too large to keep: it streams to the server under the client's own name, and the session is opaque. */
  #onHugeParse(frame: Frame, server: ServerConnection): Handled {
    this.#host.onRunning(opaque);
    this.#host.onRan(opaque, true);
    this.#unnamed.forget();
    server.unnamedId = 0;
    return this.#pass('Parse', frame, server, null);
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
    const name = source.toString('latin1', portalEnd + 1, nameEnd);
    if (this.#mustAwait(name, server)) return 'again';
    const portal = source.toString('latin1', start + HEADER, portalEnd);
    if (name === '') return this.#onBindUnnamed(portal, frame, server);
    const statement = this.#names.get(name);
    if (statement === undefined) return this.#onBindUnknown(portal, name, frame, nameEnd, server);
    if (!this.#host.lease.mayRun(statement.verdict)) return 'refused';
    const translation = translate(statement.body, statement.verdict, this.#names);
    if (translation !== null && !bring(this.#host, translation, server)) return 'again';
    const present =
      translation === null ? this.#understood(name, statement, server) : this.#findTranslated(translation);
    this.#hideSequences(statement.verdict, server);
    if (!prepare(this.#host, present, server)) return 'again';
    this.#noteSetting(statement.verdict);
    this.#host.pool.counts.binds++;
    this.#setPortal(portal, statement.verdict, translation);
    const isChanged = server.statements.isChanged(present);
    // A name that no server has makes the server raise an error, so that its transaction fails as it should.
    const serverName = isChanged ? `${present.name}_changed` : present.name;
    const rest = start + frame.size - (nameEnd + 1);
    const note: Note = isChanged ? { replaceError: planChanged } : this.#planNote(present, name, server);
    const head = header(ClientMessage.Bind, `${portal}\0${serverName}`, rest);
    return this.#passWith('Bind', head, frame, nameEnd + 1, server, note);
  }

  /**
   * The statement that `name` stands for, as the server has it. If the server lacks it and would understand its text by other settings
   * than those that it is known by, the name stands for one of these from here on.
   */
  #understood(name: string, statement: Statement, server: ServerConnection): Statement {
    if (server.statements.has(statement) || isUnderstood(this.#host, statement)) return statement;
    const other = this.alone.find(statement.body);
    // What the client was told of its rows holds.
    other.description ??= statement.description;
    this.#names.replace(name, statement, other);
    return other;
  }

  /** What only names statements means the same under all settings. */
  #findTranslated({ text }: Translation): Statement {
    return this.alone.find(text, true);
  }

  #noteSetting({ changesDialect }: Verdict): void {
    if (changesDialect) this.#host.lease.noteSetting();
  }

  /** As planNote; and a statement that a pinned client has dropped where we do not look (DO, a function) is gone. */
  #planNote(statement: Statement, name: string, server: ServerConnection): Note {
    return planNote(this.#host, statement, name, server, () => {
      if (this.#host.lease.isPinned) this.#names.undefine(name, statement);
    });
  }

  #onBindUnnamed(portal: string, frame: Frame, server: ServerConnection): Handled {
    const { body, verdict } = this.#unnamed;
    const translation = body === null ? null : translate(body, verdict, this.#names);
    if (translation !== null && !bring(this.#host, translation, server)) return 'again';
    this.#host.pool.counts.binds++;
    this.#unnamed.bring(this.#host, translation, server);
    if (body !== null) this.#noteSetting(verdict);
    this.#setPortal(portal, verdict, translation);
    return this.#pass('Bind', frame, server, null);
  }

  #onBindUnknown(portal: string, name: string, frame: Frame, nameEnd: number, server: ServerConnection): Handled {
    this.#host.pool.counts.binds++;
    // It may be one of SQL-level PREPARE: what these do to settings counts at each execution.
    if (this.#sqlNames !== null) this.#host.lease.noteSetting();
    this.#setPortal(portal, this.#sqlNames === null ? harmless : likeExecute, null);
    return this.#passUnknown('Bind', portal, name, frame, nameEnd, server);
  }

  /** A statement that is not the client's: the server answers 26000, also when the name is spelled like one of ours. */
  #passUnknown(
    kind: 'Bind' | 'Describe',
    portal: string,
    name: string,
    frame: Frame,
    nameEnd: number,
    server: ServerConnection,
  ): Handled {
    if (!isOurs(name)) return this.#pass(kind, frame, server, null);
    const other = strangeName(name);
    const note = { replaceError: (bytes: Buffer) => withName(bytes, other, name) };
    const rest = frame.start + frame.size - (nameEnd + 1);
    const head =
      kind === 'Describe'
        ? header(ClientMessage.Describe, `S${other}`, rest)
        : header(ClientMessage.Bind, `${portal}\0${other}`, rest);
    return this.#passWith(kind, head, frame, nameEnd + 1, server, note);
  }

  #setPortal(name: string, verdict: Verdict, translation: Translation | null): void {
    const portal = { verdict, translation };
    if (name === '') this.#unnamed.portal = portal;
    else if (!isHarmless(verdict) || verdict.isCommit) {
      this.#portals ??= new Map();
      this.#portals.set(name, portal);
    }
  }

  #onDescribeOrClose(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    const kind = frame.type === ClientMessage.Describe ? 'Describe' : 'Close';
    const isStatement = source[start + HEADER] === STATEMENT;
    const nameEnd = stringEnd(source, start + HEADER + 1, end);
    if (!isStatement && kind === 'Close') return this.#onClosePortal(frame, server);
    if (!isStatement || nameEnd === -1) return this.#pass(kind, frame, server, null);
    const name = source.toString('latin1', start + HEADER + 1, nameEnd);
    if (this.#mustAwait(name, server)) return 'again';
    if (kind === 'Close') return this.#onClose(name, frame, server);
    return name === '' ? this.#onDescribeUnnamed(frame, server) : this.#onDescribe(name, frame, nameEnd, server);
  }

  #onDescribeUnnamed(frame: Frame, server: ServerConnection): Handled {
    const { body, verdict } = this.#unnamed;
    const translation = body === null ? null : translate(body, verdict, this.#names);
    if (translation !== null && !bring(this.#host, translation, server)) return 'again';
    this.#unnamed.bring(this.#host, translation, server);
    return this.#pass('Describe', frame, server, null);
  }

  #onDescribe(name: string, frame: Frame, nameEnd: number, server: ServerConnection): Handled {
    const statement = this.#names.get(name);
    if (statement === undefined) return this.#passUnknown('Describe', '', name, frame, nameEnd, server);
    const translation = translate(statement.body, statement.verdict, this.#names);
    if (translation !== null && !bring(this.#host, translation, server)) return 'again';
    const present =
      translation === null ? this.#understood(name, statement, server) : this.#findTranslated(translation);
    if (!prepare(this.#host, present, server)) return 'again';
    const note: Note = { replaceError: (bytes) => withName(bytes, present.name, name) };
    if (present.description === null) note.message = remembering(present);
    const bytes = encode.aboutStatement(ClientMessage.Describe, present.name);
    return this.#passInstead('Describe', bytes, server, note);
  }

  #onClosePortal(frame: Frame, server: ServerConnection): Handled {
    const portals = this.#portals;
    if (portals === null || !frame.isEnd) return this.#pass('Close', frame, server, null);
    const name = frame.source.toString('latin1', frame.start + HEADER + 1, frame.end - 1);
    const portal = portals.get(name);
    // By then it may be another one.
    const done = () => {
      if (portals.get(name) === portal) portals.delete(name);
    };
    return this.#pass('Close', frame, server, { done });
  }

  /** Closing a name of ours never reaches the server: others may use the statement there. */
  #onClose(name: string, frame: Frame, server: ServerConnection): Handled {
    this.#names.change(name);
    if (name === '') return this.#pass('Close', frame, server, this.#unnamed.drop(server));
    const statement = this.#names.get(name);
    if (statement === undefined && this.#sqlNames?.has(name)) return this.#closeSqlName(name, server);
    if (statement === undefined && !isOurs(name)) return this.#pass('Close', frame, server, null);
    if (statement !== undefined) this.#names.undefine(name, statement);
    const note = statement === undefined ? null : { dropped: () => this.#names.define(name, statement) };
    server.outstanding.push('Close', this.#host, 'synthesize', encode.closeComplete, note);
    return 'done';
  }

  /** Close works for statements of SQL-level PREPARE, too, and may undo the pin. */
  #closeSqlName(name: string, server: ServerConnection): Handled {
    const bytes = encode.aboutStatement(ClientMessage.Close, isOurs(name) ? strangeName(name) : name);
    return this.#passInstead('Close', bytes, server, this.#ran(likeDeallocate));
  }

  /**
   * Outside a transaction a batch that has only named and described statements is ended behind the client's back, so that its
   * server need not wait until the client goes on (asyncpg: `prepare()`). It comes out as if it were open: what follows is a
   * batch of its own, or is skipped after an error.
   */
  #onFlush(frame: Frame, server: ServerConnection): Handled {
    const { outstanding } = server;
    const isOpen = outstanding.isBatchOpen || outstanding.isDiscarding;
    const isOutside = outstanding.isStatusCertain && outstanding.status === Status.Idle;
    if (
      !isOpen ||
      !isOutside ||
      this.#hasRun ||
      outstanding.isCopyIn ||
      this.#host.lease.isPinned ||
      frame.size !== encode.flush.length
    ) {
      server.forward(frame.source, frame.start, frame.end);
      return 'done';
    }
    this.#isStreaming = false;
    this.#names.endBatch();
    outstanding.push('Close', this.#host, 'synthesize', null, { dropped: () => this.#host.skipBatch() });
    inject(this.#host, 'Sync', encode.sync, server, null);
    this.#isHolding = true;
    return 'done';
  }

  #onExecute(frame: Frame, server: ServerConnection): Handled {
    const { source, start, end } = frame;
    this.#host.pool.counts.queries++;
    let { portal } = this.#unnamed;
    if (source[start + HEADER] !== 0) {
      const nameEnd = stringEnd(source, start + HEADER, end);
      portal = this.#portals?.get(source.toString('latin1', start + HEADER, nameEnd)) ?? harmlessPortal;
    }
    return this.#pass('Execute', frame, server, this.#running(portal.verdict, portal.translation, server));
  }

  /** Function Call names its function by oid. */
  #onFunctionCall(frame: Frame, server: ServerConnection): Handled {
    this.#hasRun = true;
    this.#host.pool.counts.queries++;
    const oid = frame.end - frame.start >= FUNCTION_OID_END ? frame.source.readUInt32BE(frame.start + HEADER) : 0;
    const verdict = likeCall(oid);
    if (verdict === null) return this.#pass('FunctionCall', frame, server, null);
    this.#host.lease.noteSetting();
    this.#host.onRunning(verdict);
    return this.#pass('FunctionCall', frame, server, this.#ran(verdict));
  }
}
