/**
 * The statement inside a PREPARE. Called by client/lease, for statements of SQL level that become those of the protocol
 * level.
 */
import { cut, Token, Tokens } from './shape.ts';

const tokens = new Tokens();

/**
 * The statement that `PREPARE name [(types)] AS statement` in `text` prepares; null: `text` has no such PREPARE, or
 * several. Postgres keeps the whole text of a Query with each statement that it prepares ("pg_prepared_statements").
 */
export function preparedIn(text: Buffer, name: string): Buffer | null {
  cut(tokens, text, 0, text.length);
  let found: Buffer | null = null;
  let first = 0;
  for (let at = 0; at <= tokens.count; at++) {
    if (at < tokens.count && tokens.kinds[at] !== Token.Semicolon) continue;
    if (tokens.is(first, 'prepare') && tokens.name(first + 1) === name) {
      const start = statementAt(first + 2, at);
      if (found !== null || start === -1) return null;
      found = text.subarray(tokens.starts[start], at < tokens.count ? tokens.starts[at] : text.length);
    }
    first = at + 1;
  }
  tokens.clear();
  return found;
}

/** The first token behind AS, which stands behind the types of the parameters; -1: there is none before `end`. */
function statementAt(from: number, end: number): number {
  for (let at = from; at < end - 1; at++) if (tokens.is(at, 'as')) return at + 1;
  return -1;
}
