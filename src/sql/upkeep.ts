/**
 * Does a text ask nothing of the database but whether it is there, or only set a session up or clean it? Called by sql/verdict
 * while admission is on: pools do this behind the back of their applications, and throw connections away when it fails.
 *
 * The one idea: every statement in the text begins with a word that says so. All of these are done in microseconds.
 */
import { Token, type Tokens } from './shape.ts';

const words = [
  'set',
  'reset',
  'show',
  'discard',
  'deallocate',
  'unlisten',
  'close',
  'commit',
  'end',
  'rollback',
  'abort',
];

/** Is there nothing in `tokens` but pings (nothing at all, SELECT 1) and upkeep? */
export function isUpkeep(tokens: Tokens): boolean {
  let start = 0;
  for (let at = 0; at <= tokens.count; at++) {
    if (at < tokens.count && tokens.kinds[at] !== Token.Semicolon) continue;
    if (at > start && !isOne(tokens, start, at)) return false;
    start = at + 1;
  }
  return true;
}

/** Is the statement in `tokens[start, end)`? */
function isOne(tokens: Tokens, start: number, end: number): boolean {
  if (words.some((word) => tokens.is(start, word))) return true;
  if (!tokens.is(start, 'select')) return false;
  // SELECT 1, with or without a name for it.
  if (tokens.kinds[start + 1] === Token.Number && tokens.text(start + 1) === '1') {
    const rest = end - start - 2;
    return rest === 0 || (rest === 1 && tokens.name(end - 1) !== '') || (rest === 2 && tokens.is(start + 2, 'as'));
  }
  return tokens.name(start + 1) === 'pg_advisory_unlock_all' && end - start === 4;
}
