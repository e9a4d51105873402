/**
 * What is done with the answers of one statement: by the rules of the configuration (cache.sets), and by what the statement itself says in a hint. Pure.
 * Called by cache/cache for each new shape.
 *
 *     a comment  + pgweir cache ttl=30s swr=10s      or      + pgweir nocache      right behind the slash and star
 *
 * The one idea: nothing is kept that nobody has asked for, and where several rules apply the strictest counts.
 */
import type { CacheRule, Consistency } from '../config/schema.ts';
import type { Relation } from '../sql/relations.ts';
import { globOf } from '../util/glob.ts';

/** Durations in ms. */
export interface Policy {
  ttl: number;
  staleWhileRevalidate: number;
  staleIfError: number;
  consistency: Consistency;
}

export type Hint =
  /** It may be kept, so long (a part of a Policy). */
  | { kind: 'cache'; policy: Partial<Policy> }
  /** It is never to be answered from the cache. */
  | { kind: 'nocache' }
  /** It is about us, but makes no sense: the statement runs as without it. */
  | { kind: 'malformed' };

/** From the weakest promise to the strongest. */
const strength: readonly Consistency[] = ['ttl', 'session', 'proxy', 'wal'];
const HINT = /\/\*\+\s*pgweir\s([^*]*)\*\//;
const DURATION = /^(\d+)(ms|s|m|h)$/;
const UNITS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 };

/** The hint in a comment of this text; null: there is none. */
export function hintIn(text: string): Hint | null {
  if (!text.includes('/*+')) return null;
  const words = HINT.exec(text)?.[1]?.trim().split(/\s+/);
  if (words === undefined) return null;
  const [command, ...settings] = words;
  if (command === 'nocache' && settings.length === 0) return { kind: 'nocache' };
  if (command !== 'cache') return { kind: 'malformed' };
  const policy: Partial<Policy> = {};
  for (const setting of settings) {
    const [name, value = ''] = setting.split('=');
    const [, amount, unit] = DURATION.exec(value) ?? [];
    const ms = Number(amount) * UNITS[unit ?? '']!;
    if (name === 'ttl' && ms >= 0) policy.ttl = ms;
    else if (name === 'swr' && ms >= 0) policy.staleWhileRevalidate = ms;
    else if (name === 'sie' && ms >= 0) policy.staleIfError = ms;
    else if (name === 'consistency' && strength.includes(value as Consistency))
      policy.consistency = value as Consistency;
    else return { kind: 'malformed' };
  }
  return { kind: 'cache', policy };
}

/** The policy for what reads `relations`, by name, with this hint; a text says why there is none. */
export function policyFor(
  rules: readonly CacheRule[],
  relations: readonly Relation[],
  hint: Hint | null,
): Policy | string {
  if (hint?.kind === 'nocache') return 'its hint forbids it';
  if (hint?.kind === 'cache') {
    const rule = rules.find((each) => each.hint);
    if (rule !== undefined) return checked({ ...policyOf(rule), ...hint.policy }, relations);
  }
  if (relations.length === 0) return 'it reads no table';
  const found: CacheRule[] = [];
  for (const relation of relations) {
    const rule = rules.find((each) => each.tables?.some((pattern) => isNamed(pattern, relation)));
    if (rule === undefined) return `no rule names ${relation.name}`;
    found.push(rule);
  }
  return checked(found.map(policyOf).reduce(strictest), relations);
}

/** What the WAL does not show cannot be promised by it. */
function checked(policy: Policy, relations: readonly Relation[]): Policy | string {
  const weak = relations.find(({ kind, isUnlogged }) => isUnlogged || kind === 'materialized');
  if (
    weak === undefined ||
    strength.indexOf(policy.consistency) < strength.indexOf(weak.isUnlogged ? 'wal' : 'session')
  )
    return policy;
  return `${weak.name} is ${weak.isUnlogged ? 'unlogged' : 'a materialized view'}: consistency ${policy.consistency} cannot be kept`;
}

function policyOf({ ttl, staleWhileRevalidate, staleIfError, consistency }: CacheRule): Policy {
  return { ttl, staleWhileRevalidate, staleIfError, consistency };
}

function strictest(one: Policy, other: Policy): Policy {
  const stronger = strength.indexOf(one.consistency) >= strength.indexOf(other.consistency) ? one : other;
  return {
    ttl: Math.min(one.ttl, other.ttl),
    staleWhileRevalidate: Math.min(one.staleWhileRevalidate, other.staleWhileRevalidate),
    staleIfError: Math.min(one.staleIfError, other.staleIfError),
    consistency: stronger.consistency,
  };
}

/** `pattern`: `table`, `schema.table`, with * for any characters. */
function isNamed(pattern: string, { schema, name }: Relation): boolean {
  const wanted = pattern.includes('.') ? `${schema}.${name}` : name;
  return globOf(pattern)(wanted);
}
