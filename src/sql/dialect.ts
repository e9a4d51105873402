/**
 * Does a text change how servers understand the texts behind it, for its transaction or for the session? Called by client/request, because
 * statements are shared among clients whose settings are the same (server/statements).
 *
 * The one idea: a setting counts unless its name says that it has nothing to do with what a text means. It is looked for once per shape,
 * except where the name is a value.
 */
import { cut, Token, Tokens } from '../sql/shape.ts';
import type { Nature, Verdict } from '../sql/verdict.ts';

/** Settings of how and for how long, not of what. */
const INDIFFERENT =
  /\.|_timeout$|^(enable|jit|cpu|parallel|max|min|log|vacuum|autovacuum)_|_(cost|mem|buffers|limit|isolation|read_only|deferrable|concurrency)$|^(application_name|characteristics|commit_delay|constraints|jit|row_security|seed|session_replication_role|synchronous_commit|transaction)$/;

/** 'byName': it depends on the name of a setting, which is a value. */
type Change = 'no' | 'yes' | 'byName';

const known = new WeakMap<Nature, Change>();
const tokens = new Tokens();

/** May the text `source[start, end)`, which was judged to be `verdict`, do so by what it says itself? */
export function changesDialect({ nature }: Verdict, source: Buffer, start: number, end: number): boolean {
  if (nature === null) return true;
  const change = known.get(nature);
  if (change !== undefined && change !== 'byName') return change === 'yes';
  cut(tokens, source, start, end);
  const { isChanged, isByName } = look();
  tokens.clear();
  known.set(nature, isByName ? 'byName' : isChanged ? 'yes' : 'no');
  return isChanged;
}

/** Looks at every statement in `tokens`. */
function look(): { isChanged: boolean; isByName: boolean } {
  let isChanged = false;
  let isByName = false;
  for (let at = 0; at < tokens.count; at++) {
    const isFirst = at === 0 || tokens.kinds[at - 1] === Token.Semicolon;
    if (isFirst && (tokens.is(at, 'set') || tokens.is(at, 'reset'))) isChanged ||= !isIndifferent(nameAt(at + 1));
    else if (isFirst && tokens.is(at, 'discard')) isChanged ||= tokens.is(at + 1, 'all');
    else if (tokens.kinds[at] === Token.Open && tokens.name(at - 1) === 'set_config') {
      isByName = true;
      isChanged ||= !isIndifferent(tokens.literal(at + 1) ?? '');
    }
  }
  return { isChanged, isByName };
}

/** The name of the setting behind SET or RESET; what is no name is none. */
function nameAt(first: number): string {
  const isScoped = tokens.is(first, 'local') || tokens.is(first, 'session');
  const at = isScoped && tokens.kinds[first + 1] !== Token.Dot ? first + 1 : first;
  return tokens.kinds[at + 1] === Token.Dot && at + 1 < tokens.count ? '.' : tokens.name(at);
}

function isIndifferent(name: string): boolean {
  return INDIFFERENT.test(name.toLowerCase());
}
