/**
 * Statements that do nothing but begin or end listening to a channel. Called by sql/verdict; client/subscriber answers them without
 * a server of the client's own.
 *
 * The one idea: as in sql/control, only texts of which nobody can doubt what they do, and only names that are the same in every
 * encoding and are not cut.
 */
import { Token, type Tokens } from './shape.ts';

/** `channel`: its name, without quotes; null: all (UNLISTEN *). */
export type Listening = { kind: 'listen'; channel: string } | { kind: 'unlisten'; channel: string | null };

/** NAMEDATALEN of Postgres, less one. */
const NAME_MAX = 63;
const PRINTABLE = /^[\x20-\x7e]+$/;

/** What the statement in `tokens` has to do with channels; null: nothing, or more than that. */
export function channelOf(tokens: Tokens): Listening | null {
  const isListen = tokens.is(0, 'listen');
  if (!isListen && !tokens.is(0, 'unlisten')) return null;
  for (let at = 2; at < tokens.count; at++) if (tokens.kinds[at] !== Token.Semicolon) return null;
  if (!isListen && tokens.kinds[1] === Token.Operator && tokens.text(1) === '*')
    return { kind: 'unlisten', channel: null };
  const channel = tokens.name(1);
  if (channel.length > NAME_MAX || !PRINTABLE.test(channel)) return null;
  return { kind: isListen ? 'listen' : 'unlisten', channel };
}
