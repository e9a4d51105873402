/**
 * Is a statement a read that may run on a server which other clients are using (server/line), and which shape does it
 * have? Called by sql/verdict for statements that are proved free of session effects.
 *
 * The one idea: what makes a statement more than a read shows in its words, whatever their place.
 *
 * Not shared: what writes or may wait for a lock (locking clauses, data-changing WITH), several statements in one text,
 * and functions that act on the server rather than compute.
 */
import { lengthOf, numberOf, Token, type Tokens } from './shape.ts';

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
  return isRead(tokens) ? numberOf(tokens) : 0;
}

/** Words that begin so are about the server that they run on, and not about what is in it; or a standby refuses them. */
const LOCAL = /^(pg_|inet_|txid_)/;

/** Does the answer to the read in `tokens` depend on which server it runs on? */
export function isLocal(tokens: Tokens): boolean {
  for (let at = 0; at < tokens.count; at++) if (LOCAL.test(tokens.name(at))) return true;
  return false;
}

function isRead(tokens: Tokens): boolean {
  if (!['select', 'values', 'table', 'with'].some((word) => tokens.is(0, word))) return false;
  const { kinds } = tokens;
  const end = lengthOf(tokens);
  for (let at = 0; at < end; at++) {
    switch (kinds[at]) {
      case Token.Semicolon:
        return false;
      case Token.Open:
        if (isActing(tokens.name(at - 1))) return false;
        break;
      case Token.Word:
        if (isForbidden(tokens, at)) return false;
        break;
      default:
    }
  }
  return true;
}
