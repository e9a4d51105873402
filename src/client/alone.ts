/**
 * A request while its client holds no server: what is known of it, whether it may ride with others, and what can be answered
 * without a server. Owned by client/request, asked by client/session.
 *
 *     Parse of a known text, Close                 a name is given, or given up
 *     Sync, Flush, what is left of a COPY          nothing is under way that they could end
 *     Query, or Parse Bind … Execute Sync, of      the client's transaction begins or ends (client/block)
 *     BEGIN, COMMIT or ROLLBACK
 *
 * The one idea: what a server would answer is certain, so nobody need wait for one.
 */
import * as encode from '../protocol/encode.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, stringEnd } from '../protocol/messages.ts';
import type { Wish } from '../server/line.ts';
import type { Statement } from '../server/statements.ts';
import { isHarmless, type Judge, type Verdict } from '../sql/verdict.ts';
import { type Block, isBegin, moveOf, statusOf } from './block.ts';
import { findGroup, nameIn } from './group.ts';
import type { Names } from './names.ts';
import type { ClientNames } from './question.ts';
import type { RequestHost } from './request-host.ts';
import { harmlessPortal, type Unnamed } from './unnamed.ts';

/** A read that may ride, if its cost is small. */
export interface Read extends Wish {
  /** How many messages follow the first. */
  rest: number;
}

const HEADER = 5;
/** 'S' in Describe and Close: a prepared statement is meant, not a portal. */
const STATEMENT = 0x53;

export class Alone implements ClientNames {
  readonly #host: RequestHost;
  readonly #judge: Judge;
  readonly #names: Names;
  readonly #unnamed: Unnamed;
  /** The transaction that is open for the client only. */
  #block: Block = 'none';
  /** What is known of the first statement behind its BEGIN. */
  first: Verdict | null = null;

  constructor(host: RequestHost, judge: Judge, names: Names, unnamed: Unnamed) {
    this.#host = host;
    this.#judge = judge;
    this.#names = names;
    this.#unnamed = unnamed;
  }

  // --- What is known of a request -------------------------------------------------------------------------------

  /** What is known of the request that begins with `message`; null: nothing. */
  verdictOf({ source, start, end, type, isEnd }: Frame): Verdict | null {
    if (!isEnd) return null;
    switch (type) {
      case ClientMessage.Query:
        return this.#judge.judge(source, start + HEADER, end - 1);
      case ClientMessage.Parse:
      case ClientMessage.Bind:
      case ClientMessage.Describe:
        return this.#verdictAt(source, type, start, end);
      default:
        return null;
    }
  }

  /** The batch that begins with `message` has arrived whole, and is about one statement. */
  isSingle(message: Frame, reader: FrameReader): boolean {
    return message.type === ClientMessage.Query || findGroup(message, reader) !== null;
  }

  /** Nothing in the request that begins with `message`, about one statement without parameters, could be refused by a server. */
  mayAnswer(message: Frame, reader: FrameReader): boolean {
    const group = findGroup(message, reader);
    return group?.isBare === true && !(group.hasParse && this.isTaken(group.name));
  }

  /** A name that is in use, or one too many: a server must say so. */
  isTaken(name: string): boolean {
    return this.#names.get(name) !== undefined || this.#names.isFull;
  }

  mayName(name: string): boolean {
    return !this.isTaken(name);
  }

  statementNamed(name: string): Statement | undefined {
    return this.#names.get(name);
  }

  get planSettings(): string {
    return this.#host.settings.planKey;
  }

  /** The batch that begins with `message` prepares or describes one statement and runs nothing. */
  isNaming(message: Frame, reader: FrameReader): boolean {
    const group = findGroup(message, reader);
    return group?.isExtended === true && group.isBare && !group.isExecuted;
  }

  /**
   * What is known of the statement behind the BEGIN that `message` is, or begins, in the same batch; null: it has not
   * come yet. That decides what the transaction is.
   */
  verdictBehind(message: Frame, { chunk, position }: FrameReader): Verdict | null {
    let isOwnBind = message.type === ClientMessage.Parse;
    for (let at = position; at + HEADER <= chunk.length; ) {
      const end = at + 1 + chunk.readUInt32BE(at + 1);
      const type = chunk[at]!;
      if (end <= at + 4 || end > chunk.length) return null;
      if (type === ClientMessage.Parse || (type === ClientMessage.Bind && !isOwnBind))
        return this.#verdictAt(chunk, type, at, end);
      if (type === ClientMessage.Query) return this.#judge.judge(chunk, at + HEADER, end - 1);
      if (type === ClientMessage.Bind) isOwnBind = false;
      at = end;
    }
    return null;
  }

  #verdictAt(source: Buffer, type: number, start: number, end: number): Verdict | null {
    if (type === ClientMessage.Parse) {
      const nameEnd = stringEnd(source, start + HEADER, end);
      return nameEnd === -1 ? null : this.judgeBody(source, nameEnd + 1, end);
    }
    const name = nameIn(source, type, start, end);
    if (name === null) return null;
    if (name === '') return this.#unnamed.verdict;
    const statement = this.#names.get(name);
    return statement === undefined ? null : this.#known(statement);
  }

  /** What is known of a prepared statement; judged anew when somebody wants to know what nobody did when it was prepared. */
  #known(statement: Statement): Verdict {
    const { generation } = this.#judge;
    if (statement.generation !== generation) {
      statement.verdict = this.judgeBody(statement.body, 0, statement.body.length);
      statement.generation = generation;
    }
    return statement.verdict;
  }

  /** Judges the text in the body of a Parse message, `source[start, end)`. */
  judgeBody(source: Buffer, start: number, end: number): Verdict {
    const textEnd = stringEnd(source, start, end);
    return this.#judge.judge(source, start, textEnd === -1 ? end : textEnd);
  }

  /** The Statement for the body of a Parse message. `isCertain`: what it means depends on no settings that are not known. */
  find(body: Buffer, isCertain = this.#host.lease.hasKnownSettings): Statement {
    const { statements } = this.#host.pool;
    return statements.find(body, this.planSettings, isCertain, (text) => this.judgeBody(text, 0, text.length));
  }

  /**
   * The read that begins with `message` and has arrived whole, if it is one that may ride on a server with others. What
   * follows `message` is in `reader`.
   */
  findRead(message: Frame, reader: FrameReader): Read | null {
    const { source, start, end, type } = message;
    const group = findGroup(message, reader);
    // A client that has sent more already is better served by a server of its own: its pipeline runs without a stop.
    if (group?.isLast !== true) return null;
    const { name, rest } = group;
    if (!group.isExtended) return this.#readOf(this.#judge.judge(source, start + HEADER, end - 1).read, rest, null);
    if (!group.isExecuted || group.isDescribedElse || group.hasFlush) return null;
    if (type === ClientMessage.Parse)
      return name === '' ? this.#readOf(this.judgeBody(source, start + HEADER + 1, end).read, rest, null) : null;
    const statement = this.#names.get(name);
    return statement === undefined ? null : this.#readOf(this.#known(statement).read, rest, statement);
  }

  #readOf(key: number, rest: number, statement: Statement | null): Read | null {
    return key === 0 ? null : { cost: this.#host.pool.reads.of(key), rest, statement };
  }

  // --- The transaction that no server knows of ------------------------------------------------------------------

  get block(): Block {
    return this.#block;
  }

  get isInBlock(): boolean {
    return this.#block !== 'none';
  }

  /** What the client is told that its transaction status is. */
  get status(): number {
    return statusOf(this.#block);
  }

  /**
   * Begins or ends it, as the request that begins with `message`, of which `verdict` is known, wants. 'refused': it has failed, and
   * nothing else is taken. 'no': that is for a server.
   */
  answerBlock(message: Frame, verdict: Verdict | null, reader: FrameReader): 'no' | 'refused' | 'done' {
    const move = moveOf(this.#block, verdict?.control ?? null, message.type);
    if (move === null) return 'no';
    if (move === 'refused') return 'refused';
    const answered = this.answerControl(message, reader, move.tag, {
      before: this.status,
      after: statusOf(move.block),
    });
    if (answered === 'no') return 'no';
    if (answered === 'done') this.#block = move.block;
    return 'done';
  }

  /** A request with this verdict ends it, in more messages than `answerBlock` takes. */
  isEnding(verdict: Verdict | null): boolean {
    const kind = this.isInBlock ? verdict?.control?.kind : null;
    return kind === 'commit' || kind === 'rollback';
  }

  /** A request with this verdict needs a server. */
  noteFirst(verdict: Verdict | null): void {
    this.first = this.isInBlock ? verdict : null;
  }

  /** `message` is refused. Who has sent BEGIN believes to be in a transaction, and must not go on without it. */
  fail(message: Frame, reader: FrameReader): void {
    const hasBegun = isBegin(this.verdictOf(message)) && !this.isNaming(message, reader);
    if (this.isInBlock || hasBegun) this.#block = 'failed';
  }

  /** A server knows of it from here on: gives what it was. */
  leaveBlock(): Block {
    const block = this.#block;
    this.#block = 'none';
    return block;
  }

  // --- Answers --------------------------------------------------------------------------------------------------

  /** Answers a message that need not be a server's. 'bad': there is no such message. */
  answer(message: Frame): 'no' | 'done' | 'bad' {
    switch (message.type) {
      case ClientMessage.Sync:
        if (message.size !== encode.sync.length) return 'no'; // A body is wrong here: the server will say so.
        this.#host.deliver(encode.readyForQuery(this.status));
        return 'done';
      case ClientMessage.Flush:
      case ClientMessage.CopyData:
      case ClientMessage.CopyDone:
      case ClientMessage.CopyFail:
        return 'done'; // Nothing to flush; what is left of a COPY that failed is ignored ("COPY Operations").
      case ClientMessage.Parse:
      case ClientMessage.Close:
        return this.#answerName(message) ? 'done' : 'no';
      case ClientMessage.Query:
      case ClientMessage.Bind:
      case ClientMessage.Describe:
      case ClientMessage.Execute:
      case ClientMessage.FunctionCall:
        return 'no';
      default:
        return 'bad';
    }
  }

  /**
   * Names a statement that some server has taken before, or gives a name up. A driver that prepares or closes statements
   * between transactions then waits for nobody. False: a server must be asked.
   */
  #answerName(frame: Frame): boolean {
    const { source, start, end } = frame;
    if (!frame.isStart || !frame.isEnd) return false;
    const isParse = frame.type === ClientMessage.Parse;
    const nameStart = start + HEADER + (isParse ? 0 : 1);
    const nameEnd = stringEnd(source, nameStart, end);
    if (nameEnd <= nameStart) return false;
    const name = source.toString('latin1', nameStart, nameEnd);
    const known = this.#names.get(name);
    if (frame.type === ClientMessage.Close && source[start + HEADER] === STATEMENT) {
      if (known !== undefined) this.#names.undefine(name, known);
      this.#host.deliver(encode.closeComplete);
      return true;
    }
    if (!isParse || known !== undefined || this.#names.isFull) return false;
    const statement = this.find(source.subarray(nameEnd + 1, end));
    if (!statement.isVerified || !isHarmless(statement.verdict)) return false;
    this.#host.pool.counts.clientParses++;
    this.#names.define(name, statement);
    this.#host.deliver(encode.parseComplete);
    return true;
  }

  /**
   * Answers the request that begins with `message`, a transaction's begin or end: with `tag`, and the status after it, which
   * is `before` if it only names or describes its statement. 'no': it has not arrived whole, or has more in it.
   */
  answerControl(
    message: Frame,
    reader: FrameReader,
    tag: string,
    { before, after }: { before: number; after: number },
  ): 'no' | 'named' | 'done' {
    const host = this.#host;
    const group = findGroup(message, reader);
    if (group?.isBare !== true) return 'no';
    const { rest, isExecuted } = group;
    if (!group.isExtended) {
      this.#unnamed.forget();
      host.deliver(encode.commandComplete(tag));
      host.deliver(encode.readyForQuery(after));
      return this.#end();
    }
    if (group.hasParse && this.isTaken(group.name)) return 'no';
    const status = isExecuted ? after : before;
    this.#answerMessage(message, tag, status);
    for (let left = rest; left > 0; left--) {
      reader.next(message);
      this.#answerMessage(message, tag, status);
    }
    return isExecuted ? this.#end() : 'named';
  }

  /** A statement was answered. */
  #end(): 'done' {
    this.#unnamed.portal = harmlessPortal;
    this.#host.pool.counts.queries++;
    return 'done';
  }

  /** Others answer the group that begins with `message`, and goes on with `rest` messages in `reader`: what it names is remembered. */
  passOver(message: Frame, reader: FrameReader, rest: number): void {
    const host = this.#host;
    if (message.type === ClientMessage.Query) this.#unnamed.forget();
    for (let left = rest; ; left--) {
      if (message.type === ClientMessage.Parse) this.#remember(message);
      else if (message.type === ClientMessage.Bind) host.pool.counts.binds++;
      if (left === 0) break;
      reader.next(message);
    }
    this.#end();
  }

  #remember({ source, start, end }: Frame): void {
    const nameEnd = stringEnd(source, start + HEADER, end);
    const body = Buffer.from(source.subarray(nameEnd + 1, end));
    if (nameEnd === start + HEADER) this.#unnamed.keep(body, this.judgeBody(body, 0, body.length));
    else this.#names.define(source.toString('latin1', start + HEADER, nameEnd), this.find(body));
    this.#host.pool.counts.clientParses++;
  }

  #answerMessage(message: Frame, tag: string, status: number): void {
    const { type, source, start } = message;
    const host = this.#host;
    switch (type) {
      case ClientMessage.Parse:
        this.#remember(message);
        host.deliver(encode.parseComplete);
        break;
      case ClientMessage.Bind:
        host.pool.counts.binds++;
        host.deliver(encode.bindComplete);
        break;
      case ClientMessage.Describe:
        if (source[start + HEADER] === STATEMENT) host.deliver(encode.noParameters);
        host.deliver(encode.noData);
        break;
      case ClientMessage.Execute:
        host.deliver(encode.commandComplete(tag));
        break;
      case ClientMessage.Flush:
        break;
      default: // Sync.
        host.deliver(encode.readyForQuery(status));
    }
  }
}
