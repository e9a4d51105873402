/**
 * Which statements of a text begin or end listening to a channel. Called by sql/verdict; one that does nothing else is answered by
 * client/session without a server of the client's own.
 *
 * The one idea: as in sql/control, only texts of which nobody can doubt what they do, and only names that are the same in every
 * encoding, that are not cut, and that no server refuses.
 */
import { Token, type Tokens } from './shape.ts';

/** `channel`: its name, without quotes; null: all (UNLISTEN *). */
export type Listening = { kind: 'listen'; channel: string } | { kind: 'unlisten'; channel: string | null };

export interface Listenings {
  /** The text is one such statement. */
  isAlone: boolean;
  all: Listening[];
}

/** NAMEDATALEN of Postgres, less one. */
const NAME_MAX = 63;
const PRINTABLE = /^[\x20-\x7e]+$/;
const QUOTE = 0x22;
/** Reserved key words: names only in quotes (manual, appendix C; those of type "reserved" and "can be function or type"). */
const reserved = new Set(
  `all analyse analyze and any array as asc asymmetric authorization between binary both case cast check collate collation column
   concurrently constraint create cross current_catalog current_date current_role current_schema current_time current_timestamp
   current_user default deferrable desc distinct do else end except false fetch for foreign freeze from full grant group having ilike
   in initially inner intersect into is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null
   offset on only or order outer overlaps placing primary references returning right select session_user similar some symmetric
   system_user table tablesample then to trailing true union unique user using variadic verbose when where window with`.split(
    /\s+/,
  ),
);

/** What the text in `tokens` has to do with channels; null: nothing that can be read. */
export function channelsOf(tokens: Tokens): Listenings | null {
  const all: Listening[] = [];
  let statements = 0;
  for (let at = 0; at < tokens.count; at++) {
    if (tokens.kinds[at] === Token.Semicolon) continue;
    let end = at;
    while (end < tokens.count && tokens.kinds[end] !== Token.Semicolon) end++;
    statements++;
    const found = end === at + 2 ? listeningAt(tokens, at) : null;
    if (found !== null) all.push(found);
    at = end;
  }
  return all.length === 0 ? null : { isAlone: statements === 1, all };
}

function listeningAt(tokens: Tokens, at: number): Listening | null {
  const isListen = tokens.is(at, 'listen');
  if (!isListen && !tokens.is(at, 'unlisten')) return null;
  if (!isListen && tokens.kinds[at + 1] === Token.Operator && tokens.text(at + 1) === '*')
    return { kind: 'unlisten', channel: null };
  const channel = nameAt(tokens, at + 1);
  return channel === null ? null : { kind: isListen ? 'listen' : 'unlisten', channel };
}

function nameAt(tokens: Tokens, at: number): string | null {
  const name = tokens.name(at);
  if (name.length > NAME_MAX || !PRINTABLE.test(name)) return null;
  if (tokens.kinds[at] === Token.Word) return reserved.has(name) ? null : name;
  // Neither U&"…", nor one without an end.
  const { source, starts, ends } = tokens;
  const isWhole = ends[at]! - starts[at]! > 2 && source[starts[at]!] === QUOTE && source[ends[at]! - 1] === QUOTE;
  return isWhole ? name : null;
}
