/**
 * Session settings (GUCs) as immutable values, and the SQL that turns one server's settings into another session's.
 * Called by server/connection (what a server has), client/login (what a client asked for) and client/session (what a
 * client has come to have).
 *
 * The one idea: settings are never changed, only replaced, and equal settings are one object (`SettingsBook.intern`),
 * so in the steady state "does this server suit this client" is one comparison of two pointers.
 *
 * Two kinds of names: those that a server reports (ParameterStatus) are followed as they are reported, which gets
 * rollback, SET LOCAL and functions right for free; all others are asked for after a statement that touched them.
 * Names and values are Latin-1 strings: the bytes that came over the wire.
 */
import { LRUCache } from 'lru-cache';
import { fold } from '../util/fold.ts';
import { spell } from './spelling.ts';

export interface Settings {
  /** Reported parameters by their reported name, with the server's spelling of the value. */
  readonly reported: ReadonlyMap<string, string>;
  /** Everything else that differs from the server's login default, by lower-case name. */
  readonly custom: ReadonlyMap<string, string>;
  readonly key: string;
  /** What decides how the text of a statement is understood: statements are shared only among sessions that agree. */
  readonly planKey: string;
  /** Texts cannot be read reliably: a quote or backslash may not be what it looks like. */
  readonly isOpaque: boolean;
}

/** Reported, but not to be set. */
const fixed = new Set(['in_hot_standby', 'integer_datetimes', 'is_superuser', 'server_encoding', 'server_version']);

/** Who one is decides what one may set: given up first, taken on last. */
const identity = ['role', 'session_authorization'];

/** Settings kept for others to share, in number and in characters; what exceeds this is merely not shared. */
const INTERNED_MAX = 5_000;
const INTERNED_CHARACTERS_MAX = 8 * 1024 * 1024;
/** More settings than this on one session are not tracked but pinned. */
export const CUSTOM_MAX = 200;

function keyOf(reported: ReadonlyMap<string, string>, custom: ReadonlyMap<string, string>): string {
  const part = (map: ReadonlyMap<string, string>) => [...map].sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([part(reported), part(custom)]);
}

/** Reported settings that a literal or a name may depend on when its statement is parsed. */
const planned = ['DateStyle', 'IntervalStyle', 'TimeZone', 'client_encoding', 'search_path', 'session_authorization'];

function planKeyOf(reported: ReadonlyMap<string, string>, custom: ReadonlyMap<string, string>): string {
  return keyOf(new Map(planned.map((name) => [name, reported.get(name) ?? ''])), custom);
}

/** Encodings in whose multi-byte characters a quote or backslash byte may hide. */
const unsafeEncodings = new Set(['SJIS', 'BIG5', 'GBK', 'GB18030', 'JOHAB', 'UHC', 'SHIFT_JIS_2004']);

function isOpaque(reported: ReadonlyMap<string, string>): boolean {
  return (
    reported.get('standard_conforming_strings') === 'off' || unsafeEncodings.has(reported.get('client_encoding') ?? '')
  );
}

/** Makes Settings, giving equal ones the same identity. One book per pool. */
export class SettingsBook {
  readonly #interned = new LRUCache<string, Settings>({
    max: INTERNED_MAX,
    maxSize: INTERNED_CHARACTERS_MAX,
    sizeCalculation: ({ key }) => key.length,
  });

  intern(reported: ReadonlyMap<string, string>, custom: ReadonlyMap<string, string>): Settings {
    const key = keyOf(reported, custom);
    let settings = this.#interned.get(key);
    if (settings === undefined) {
      settings = { reported, custom, key, planKey: planKeyOf(reported, custom), isOpaque: isOpaque(reported) };
      this.#interned.set(key, settings);
    }
    return settings;
  }

  /** `base` with a reported parameter replaced. */
  withReported(base: Settings, name: string, value: string): Settings {
    if (base.reported.get(name) === value) return base;
    return this.intern(new Map(base.reported).set(name, value), base.custom);
  }

  /** `base` with custom settings replaced; null takes one away. */
  withCustom(base: Settings, changes: Iterable<readonly [string, string | null]>): Settings {
    const custom = new Map(base.custom);
    for (const [name, value] of changes) {
      if (value === null) custom.delete(name);
      else custom.set(name, value);
    }
    return this.intern(base.reported, custom);
  }

  /** `base` (what servers report at login) with what a client asked for at startup. */
  withStartup(base: Settings, asked: Iterable<readonly [string, string]>): Settings {
    const reported = new Map(base.reported);
    const custom = new Map(base.custom);
    for (const [name, value] of asked) {
      const known = reportedName(base, name);
      if (known === null) custom.set(fold(name), value);
      else reported.set(known, spell(known, value, base.reported.get(known) ?? ''));
    }
    return this.intern(reported, custom);
  }
}

/** The reported spelling of a setting's name (names ignore case), or null when it is not reported. */
export function reportedName(settings: Settings, name: string): string | null {
  if (settings.reported.has(name)) return name;
  const lower = fold(name);
  for (const reported of settings.reported.keys()) if (reported.toLowerCase() === lower) return reported;
  return null;
}

/** A string constant that means the same whatever standard_conforming_strings says. */
export function quoteLiteral(text: string): string {
  return `E'${text.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
}

function quoteName(name: string): string {
  return name
    .split('.')
    .map((part) => `"${part.replaceAll('"', '""')}"`)
    .join('.');
}

/**
 * Statements that give a server with settings `has` the settings `wants`; null when there is nothing to do. `login` is what
 * the server had right after login, to which a reported parameter that `wants` does not know goes back.
 */
export function settingsDiff(has: Settings, wants: Settings, login: Settings): string[] | null {
  if (has === wants) return null;
  const resets: string[] = [];
  const sets = new Map<string, string>();
  for (const name of has.custom.keys()) if (!wants.custom.has(name)) resets.push(name);
  for (const [name, value] of wants.custom) if (has.custom.get(name) !== value) sets.set(name, value);
  for (const [name, value] of has.reported) {
    const wanted = wants.reported.get(name) ?? login.reported.get(name);
    if (wanted !== undefined && wanted !== value && !fixed.has(name)) sets.set(name, wanted);
  }
  for (const [name, value] of wants.reported) if (!has.reported.has(name) && !fixed.has(name)) sets.set(name, value);
  if (resets.length === 0 && sets.size === 0) return null;
  return statements(has, wants, resets, sets, login);
}

function statements(
  has: Settings,
  wants: Settings,
  resets: string[],
  sets: Map<string, string>,
  login: Settings,
): string[] {
  // A role that is in force may lack the right to change the rest: give it up first, take it on again last.
  for (const name of identity) {
    const value = has.custom.get(name);
    if (value === undefined || resets.includes(name)) continue;
    resets.push(name);
    const wanted = wants.custom.get(name);
    if (wanted !== undefined) sets.set(name, wanted);
  }
  const rank = (name: string) => identity.indexOf(name);
  const first = [...resets].sort((a, b) => rank(b) - rank(a)).sort((a, b) => Number(rank(a) < 0) - Number(rank(b) < 0));
  // A style or an order alone would keep the other half of what the server has.
  const style = sets.get('DateStyle');
  const isHalf = style !== undefined && !style.includes(',');
  const calls = [...(isHalf ? [['DateStyle', login.reported.get('DateStyle') ?? 'ISO, MDY'] as const] : []), ...sets]
    .sort(([a], [b]) => Number(rank(a) >= 0) - Number(rank(b) >= 0) || rank(b) - rank(a))
    .map(([name, value]) => `pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, false)`);
  const reset = first.map((name) => `RESET ${quoteName(name)}`);
  return [...reset, ...(calls.length > 0 ? [`SELECT ${calls.join(', ')}`] : [])];
}
