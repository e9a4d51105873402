/**
 * User functions of one database, judged by their bodies: has calling one an effect on the session? Filled through the
 * control connection (`databases.<name>.control`); without one every user function pins. Called by sql/verdict.
 *
 * The one idea: bodies in SQL and PL/pgSQL are read once per refresh, with the same eyes as statements. What runs text
 * (EXECUTE), is written in another language or calls something that is not harmless itself is not harmless.
 *
 * Names are judged, not signatures: of several functions with one name the worst counts.
 */
import type { Clock } from '../util/clock.ts';
import { harmlessFunctions } from './builtins.ts';
import { cut, Token, Tokens } from './shape.ts';

/** Runs SQL on the control connection and gives rows of text. */
export type Query = (sql: string) => Promise<(string | null)[][]>;

const FUNCTIONS = `
  SELECT n.nspname, p.proname, l.lanname, coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p', 'w') AND n.nspname <> 'pg_catalog'`;
const REFRESH_MS = 60_000;
/** A name that is not known asks for a refresh, at most this often. */
const RETRY_MS = 1_000;

export class Catalog {
  readonly #query: Query;
  readonly #clock: Clock;
  #harmless: ReadonlyMap<string, boolean> = new Map();
  #refreshedAt = Number.NEGATIVE_INFINITY;
  #isRefreshing = false;
  /** Refreshes that failed, and why the last one did. */
  readonly counts = { refreshed: 0, failed: 0 };
  lastError = '';

  constructor(query: Query, clock: Clock) {
    this.#query = query;
    this.#clock = clock;
  }

  /** Is every function of this name (`f` or `schema.f`) known to be without effect on the session? */
  isHarmless(name: string): boolean {
    const verdict = this.#harmless.get(name);
    const age = this.#clock.now() - this.#refreshedAt;
    if (age > REFRESH_MS || (verdict === undefined && age > RETRY_MS)) void this.refresh();
    return verdict === true;
  }

  /** Reads the catalogue anew. */
  async refresh(): Promise<void> {
    if (this.#isRefreshing) return;
    this.#isRefreshing = true;
    this.#refreshedAt = this.#clock.now();
    try {
      this.#harmless = judgeFunctions(await this.#query(FUNCTIONS));
      this.counts.refreshed++;
    } catch (thrown) {
      this.counts.failed++;
      this.lastError = String(thrown);
    }
    this.#isRefreshing = false;
  }
}

/** Judges rows of (schema, name, language, body); gives each name, plain and qualified, its verdict. */
export function judgeFunctions(rows: readonly (string | null)[][]): Map<string, boolean> {
  /** The functions that a function needs to be harmless, or null when it is not for its own sake. */
  const needs = new Map<string, (readonly string[] | null)[]>();
  for (const [schema, name, language, body] of rows) {
    const calls = language === 'sql' || language === 'plpgsql' ? callsOf(body ?? '') : null;
    for (const key of [name!, `${schema}.${name}`]) needs.set(key, [...(needs.get(key) ?? []), calls]);
  }
  const isOwnFault = (name: string) => needs.get(name)!.some((calls) => calls === null);
  const harmless = new Set([...needs.keys()].filter((name) => !isOwnFault(name)));
  // Take away whoever calls something that is not harmless, until nothing changes.
  for (let before = -1; before !== harmless.size; ) {
    before = harmless.size;
    for (const name of harmless) {
      const calls = needs.get(name)!.flatMap((each) => each ?? []);
      if (!calls.every((called) => harmlessFunctions.has(called) || harmless.has(called))) harmless.delete(name);
    }
  }
  return new Map([...needs.keys()].map((name) => [name, harmless.has(name)]));
}

const harmfulWords = new Set(
  'execute temp temporary listen unlisten load prepare deallocate discard hold reset dblink call do create alter'.split(
    ' ',
  ),
);
const beforeStatement = new Set(['begin', 'then', 'loop', 'else', 'atomic']);
const calling = new Set(
  'if elsif while for foreach perform return raise in values and or not exists any some all on using over filter when then else case where from join by having limit select union as insert into set row array like check cast returning default conflict with'.split(
    ' ',
  ),
);

/** The names that a body calls and that are not built-in; null when the body itself has, or may have, an effect. */
function callsOf(body: string): readonly string[] | null {
  const tokens = new Tokens();
  const bytes = Buffer.from(body, 'utf8');
  cut(tokens, bytes, 0, bytes.length);
  const calls: string[] = [];
  for (let at = 0; at < tokens.count; at++) {
    const name = tokens.name(at);
    if (name === '') continue;
    if (harmfulWords.has(name) || name === 'pg_temp' || name === 'pg_settings') return null;
    const isFirst = at === 0 || tokens.kinds[at - 1] === Token.Semicolon || beforeStatement.has(tokens.name(at - 1));
    if (name === 'set' && isFirst) return null;
    if (tokens.kinds[at + 1] !== Token.Open || at + 1 >= tokens.count || calling.has(name)) continue;
    if (tokens.is(at - 1, 'into')) continue;
    const schema = tokens.kinds[at - 1] === Token.Dot ? tokens.name(at - 2) : '';
    if (schema === '' || schema === 'pg_catalog') {
      if (!harmlessFunctions.has(name)) calls.push(name);
    } else calls.push(`${schema}.${name}`);
  }
  return calls;
}
