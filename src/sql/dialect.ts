/**
 * Does a text change how servers understand the texts behind it, for its transaction or for the session? Called by sql/verdict once for each shape,
 * and for each text where the name of a setting is a value; client/request asks, because statements are shared among clients whose settings
 * are the same (server/statements).
 *
 * The one idea: a setting counts unless its name says that it has nothing to do with what a text means.
 */
import { fold } from '../util/fold.ts';
import { Token, type Tokens } from './shape.ts';

/** Settings of how and for how long, not of what. */
const INDIFFERENT =
  /\.|_timeout$|^(enable|jit|cpu|parallel|max|min|log|vacuum|autovacuum)_|_(cost|mem|buffers|limit|isolation|read_only|deferrable|concurrency)$|^(application_name|characteristics|commit_delay|constraints|jit|row_security|seed|session_replication_role|synchronous_commit|transaction)$/;

/** 'byName': it depends on the name of a setting, which is a value. */
export type Change = 'no' | 'yes' | 'byName';

/** What texts of the shape in `tokens` do. */
export function changeOf(tokens: Tokens): Change {
  let isChanged = false;
  for (let at = 0; at < tokens.count; at++) {
    if (isCall(tokens, at)) return 'byName';
    isChanged ||= isSet(tokens, at);
  }
  return isChanged ? 'yes' : 'no';
}

/** Does the text in `tokens`, of a shape that goes by names, do so? */
export function changesByName(tokens: Tokens): boolean {
  for (let at = 0; at < tokens.count; at++)
    if (isSet(tokens, at) || (isCall(tokens, at) && !isIndifferent(tokens.literal(at + 1) ?? ''))) return true;
  return false;
}

/** A statement that changes it begins at `at`. */
function isSet(tokens: Tokens, at: number): boolean {
  if (at > 0 && tokens.kinds[at - 1] !== Token.Semicolon) return false;
  if (tokens.is(at, 'set') || tokens.is(at, 'reset')) return !isIndifferent(nameAt(tokens, at + 1));
  return tokens.is(at, 'discard') && tokens.is(at + 1, 'all');
}

function isCall(tokens: Tokens, at: number): boolean {
  return tokens.kinds[at] === Token.Open && tokens.name(at - 1) === 'set_config';
}

/** The name of the setting behind SET or RESET; what is no name is none. */
function nameAt(tokens: Tokens, first: number): string {
  const isScoped = tokens.is(first, 'local') || tokens.is(first, 'session');
  const at = isScoped && tokens.kinds[first + 1] !== Token.Dot ? first + 1 : first;
  return tokens.kinds[at + 1] === Token.Dot && at + 1 < tokens.count ? '.' : tokens.name(at);
}

function isIndifferent(name: string): boolean {
  return INDIFFERENT.test(fold(name));
}
