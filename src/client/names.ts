/**
 * The prepared statements of one client by name, as it believes them to be. Called by client/request and client/alone.
 *
 * The one idea: what a name stands for changes when a message is sent and is taken back when that message fails or is
 * skipped. Within its own batch a change fails together with whatever builds on it; a later batch that is sent before
 * the answer must wait (`isInDoubt`).
 *
 * Invariant: every name counts as one user of its Statement, until it is given up or the client has gone.
 */
import type { Statement, StatementBook } from '../server/statements.ts';

/** Names that one client may have, and MiB of the texts that they stand for. */
export const NAMES_MAX = 10_000;
export const NAMES_MIB_MAX = 64;

export class Names {
  readonly #book: StatementBook;
  /** Null while there are none, as for most clients. */
  #statements: Map<string, Statement> | null = null;
  /** Of the texts that they stand for. */
  #bytes = 0;
  /** Names whose Parse has not been answered: DEALLOCATE ALL does not reach what was sent after it. */
  #fresh: Set<string> | null = null;
  /** Counts what ends a batch: Syncs and simple Queries. */
  #batch = 0;
  /** The batch in which a name was last given or given up; for the unnamed statement a number of its own. */
  #changes: Map<string, number> | null = null;
  #unnamedChange = -1;
  /** The client has gone: what is taken back now is nobody's. */
  #isClosed = false;

  constructor(book: StatementBook) {
    this.#book = book;
  }

  get size(): number {
    return this.#statements?.size ?? 0;
  }

  /** No more for this client. */
  get isFull(): boolean {
    return this.size >= NAMES_MAX || this.#bytes >= NAMES_MIB_MAX * 1024 * 1024;
  }

  get(name: string): Statement | undefined {
    return this.#statements?.get(name);
  }

  /** Any one of them; there must be one. */
  any(): Statement {
    return this.#statements!.values().next().value!;
  }

  /** All of them, as pairs of name and statement: a copy. */
  all(): [string, Statement][] {
    return [...(this.#statements ?? [])];
  }

  define(name: string, statement: Statement): void {
    if (this.#isClosed) return;
    this.#statements ??= new Map();
    this.#statements.set(name, statement);
    this.#bytes += statement.body.length;
    this.#book.use(statement);
  }

  /** `name`, which stands for `statement`, is to stand for another one of the same text. */
  replace(name: string, statement: Statement, other: Statement): void {
    this.#statements!.set(name, other);
    this.#book.use(other);
    this.#book.unuse(statement);
  }

  /** Gives up `name`, if it still stands for `statement`. */
  undefine(name: string, statement: Statement): void {
    this.#fresh?.delete(name);
    if (this.#statements?.get(name) !== statement) return;
    this.#statements.delete(name);
    this.#bytes -= statement.body.length;
    if (this.#statements.size === 0) this.#statements = null;
    this.#book.unuse(statement);
  }

  /** The Parse of `name` has been sent. */
  expect(name: string): void {
    this.#fresh ??= new Set();
    this.#fresh.add(name);
  }

  /** It has been answered. */
  confirm(name: string): void {
    this.#fresh?.delete(name);
  }

  /** DEALLOCATE ALL has taken effect: all names are gone whose Parse was answered before. */
  forget(): void {
    for (const [name, statement] of this.all()) if (!this.#fresh?.has(name)) this.undefine(name, statement);
  }

  /** The client has gone. */
  close(): void {
    this.#fresh = null;
    this.forget();
    this.#isClosed = true;
  }

  /** A batch has ended with the message that is being sent. */
  endBatch(): void {
    this.#batch++;
  }

  /** What `name` stands for changes with a message of the present batch. */
  change(name: string): void {
    if (name === '') this.#unnamedChange = this.#batch;
    else {
      this.#changes ??= new Map();
      this.#changes.set(name, this.#batch);
    }
  }

  /** The server owes nothing: what has changed is known. */
  settle(): void {
    this.#changes = null;
    this.#unnamedChange = -1;
  }

  /** Does `name` stand for what we believe only if an earlier batch succeeds, which is not answered yet? */
  isInDoubt(name: string): boolean {
    const batch = name === '' ? this.#unnamedChange : (this.#changes?.get(name) ?? -1);
    return batch !== -1 && batch !== this.#batch;
  }
}
