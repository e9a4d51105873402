/**
 * Is a statement a read that may run on a server which other clients are using (server/line), and which shape does it
 * have? Called by sql/verdict for statements that are proved free of session effects.
 *
 * The one idea: one pass over the tokens both looks for what must not be shared and makes a number of the shape, the
 * text without its values, so that a read is recognised again without making a string of it.
 *
 * Not shared: what writes or may wait for a lock (locking clauses, data-changing WITH), several statements in one text,
 * and functions that act on the server rather than compute.
 */
import { Token, type Tokens } from './shape.ts';

/** Built-in functions that do more than compute, besides those whose names begin with pg_ or lo_. */
const acting = new Set(
  `nextval setval txid_current txid_status loread lowrite currtid2 amvalidate plpgsql_validator gin_clean_pending_list
   brin_desummarize_range brin_summarize_new_values brin_summarize_range`.split(/\s+/),
);

/** Does a call of this built-in function make a statement more than a read? */
export function isActing(name: string): boolean {
  return name.startsWith('pg_') || name.startsWith('lo_') || acting.has(name);
}

/** Is it a word that a mere read does not have, in whatever place? */
function isForbidden(tokens: Tokens, at: number): boolean {
  switch (tokens.source[tokens.starts[at]!]! | 0x20) {
    case 0x66: // f
      return tokens.is(at, 'for');
    case 0x69: // i
      return tokens.is(at, 'into') || tokens.is(at, 'insert');
    case 0x75: // u
      return tokens.is(at, 'update');
    case 0x64: // d
      return tokens.is(at, 'delete');
    case 0x6d: // m
      return tokens.is(at, 'merge');
    default:
      return false;
  }
}

/** A number for the shape of the read in `tokens`, never 0; 0: it is not to be shared. */
export function readKey(tokens: Tokens): number {
  if (!['select', 'values', 'table', 'with'].some((word) => tokens.is(0, word))) return 0;
  const { kinds, starts, ends, source } = tokens;
  let end = tokens.count;
  while (end > 0 && kinds[end - 1] === Token.Semicolon) end--;
  // Two FNV-1a hashes of 32 bits (Fowler, Noll, Vo) side by side: a number holds 53 bits of them.
  let a = 0x811c9dc5;
  let b = 0x050c5d1f;
  for (let at = 0; at < end; at++) {
    const kind = kinds[at]!;
    switch (kind) {
      case Token.Semicolon:
        return 0;
      case Token.Open:
        if (isActing(tokens.name(at - 1))) return 0;
        break;
      case Token.Word:
        if (isForbidden(tokens, at)) return 0;
        for (let i = starts[at]!; i < ends[at]!; i++) {
          const byte = source[i]! | 0x20;
          a = Math.imul(a ^ byte, 0x01000193);
          b = Math.imul(b ^ byte, 0x01000193);
        }
        break;
      case Token.Quoted:
      case Token.Operator:
        for (let i = starts[at]!; i < ends[at]!; i++) {
          a = Math.imul(a ^ source[i]!, 0x01000193);
          b = Math.imul(b ^ source[i]!, 0x01000193);
        }
        break;
      case Token.Comma:
        // A list of values counts as one.
        if (isValue(kinds[at - 1]!) && at + 1 < end && isValue(kinds[at + 1]!)) {
          at++;
          continue;
        }
        break;
      default:
    }
    const mark = 0x100 + (isValue(kind) ? Token.String : kind);
    a = Math.imul(a ^ mark, 0x01000193);
    b = Math.imul(b ^ mark, 0x01000193);
  }
  return (a >>> 0) * 0x20_0000 + (b >>> 11) || 1;
}

function isValue(kind: number): boolean {
  return kind === Token.String || kind === Token.Number || kind === Token.Parameter;
}
