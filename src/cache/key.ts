/**
 * What makes two requests the same question: who asks, with which settings, in which protocol, and the bytes of the question itself. Called by
 * client/cached for each read.
 *
 * The one idea: the key is a string of the very bytes, not a hash of them, so that two questions are never taken for one; and it is made
 * without looking at the SQL, unless there is a comment in it.
 *
 *     identity S text                      identity E length text types, formats, parameters, result formats
 */
import { createHash } from 'node:crypto';
import { cut, Token, Tokens } from '../sql/shape.ts';

/** The settings of a session, as far as the cache needs them. */
export interface SessionSettings {
  readonly reported: ReadonlyMap<string, string>;
  readonly custom: ReadonlyMap<string, string>;
}

/** Who asks: database, user, role and every setting that an answer may depend on. */
export interface Identity {
  /** Short, and of this process only. */
  readonly id: string;
  /** For caches that others share. */
  readonly digest: string;
  /** What unqualified names are looked up in; null: not known. */
  readonly searchPath: string | null;
  /** What "$user" stands for. */
  readonly role: string;
}

/** Settings that no answer depends on; whatever else a session has set is part of the key. */
const indifferent = new Set(
  `application_name client_min_messages commit_delay commit_siblings cursor_tuple_fraction deadlock_timeout
   default_transaction_deferrable default_transaction_isolation default_transaction_read_only effective_cache_size
   effective_io_concurrency idle_in_transaction_session_timeout idle_session_timeout in_hot_standby jit lock_timeout
   maintenance_work_mem random_page_cost scram_iterations seq_page_cost statement_timeout synchronous_commit tcp_keepalives_count
   tcp_keepalives_idle tcp_keepalives_interval tcp_user_timeout temp_buffers track_activities transaction_timeout
   work_mem`.split(/\s+/),
);

function isIndifferent(name: string): boolean {
  return indifferent.has(name) || name.startsWith('enable_') || name.startsWith('log_') || name.startsWith('jit_');
}

/** Gives equal identities the same id. One for each process. */
export class Identities {
  readonly #known = new WeakMap<SessionSettings, Map<string, Identity>>();
  readonly #ids = new Map<string, string>();
  #last = 0;

  /** Of who has logged in to `database` as `user`, with these settings. */
  of(database: string, user: string, settings: SessionSettings): Identity {
    let known = this.#known.get(settings);
    if (known === undefined) {
      known = new Map();
      this.#known.set(settings, known);
    }
    const who = JSON.stringify([database, user]);
    let identity = known.get(who);
    if (identity === undefined) {
      identity = this.#make(who, user, settings);
      known.set(who, identity);
    }
    return identity;
  }

  #make(who: string, user: string, { reported, custom }: SessionSettings): Identity {
    const all = [...reported, ...custom].filter(([name]) => !isIndifferent(name.toLowerCase())).sort();
    const text = JSON.stringify([who, all]);
    let id = this.#ids.get(text);
    if (id === undefined) {
      // Numbers are never used again, so forgetting some only means that equal ones do not share.
      if (this.#ids.size > IDENTITIES_MAX) this.#ids.clear();
      id = (++this.#last).toString(36);
      this.#ids.set(text, id);
    }
    const session = reported.get('session_authorization') ?? user;
    const role = custom.get('role');
    return {
      id,
      digest: createHash('sha256').update(text).digest('hex'),
      searchPath: custom.get('search_path') ?? reported.get('search_path') ?? null,
      role: role === undefined || role === 'none' ? (custom.get('session_authorization') ?? session) : role,
    };
  }
}

const IDENTITIES_MAX = 100_000;

const tokens = new Tokens();

/** The text without its comments, which must not make a difference; except for hints, which are to. */
export function plainText(text: string): string {
  if (!text.includes('--') && !text.includes('/*')) return text;
  const source = Buffer.from(text, 'latin1');
  cut(tokens, source, 0, source.length);
  let plain = '';
  let end = 0;
  for (let at = 0; at < tokens.count; at++) {
    if (at > 0 && tokens.starts[at]! > end) plain += ' ';
    plain += tokens.text(at);
    end = tokens.ends[at]!;
  }
  tokens.clear();
  const hint = /\/\*\+\s*pgweir[^*]*\*\//.exec(text)?.[0] ?? '';
  return hint + plain;
}

/** The key of a simple query. Texts are Latin-1: the bytes that came. */
export function simpleKey({ id }: Identity, text: string): string {
  return `${id} S${text}`;
}

/** The key of a statement with its parameters: `types` are those of Parse, `values` all of Bind behind the names. */
export function extendedKey({ id }: Identity, text: string, types: string, values: string): string {
  return `${id} E${text.length} ${types.length} ${text}${types}${values}`;
}

const SUSPICIOUS = /now|today|tomorrow|yesterday|\\/i;
const VOLATILE = /\b(now|today|tomorrow|yesterday)\b/i;

/** Is there a string in this text that means another time each day, or one whose characters are not to be seen? */
export function hasVolatileString(text: string): boolean {
  if (!SUSPICIOUS.test(text)) return false;
  const source = Buffer.from(text, 'latin1');
  cut(tokens, source, 0, source.length);
  let found = false;
  for (let at = 0; at < tokens.count && !found; at++) {
    if (tokens.kinds[at] !== Token.String) continue;
    const string = tokens.text(at);
    found = VOLATILE.test(string) || (/^[eu]/i.test(string) && string.includes('\\'));
  }
  tokens.clear();
  return found;
}

/** Longer parameters are no such words. */
const WORD_MAX = 40;

/** Is there such a word among the parameters of a Bind, `values` as in `extendedKey`? A Bind that is not well formed counts as having one. */
export function hasVolatileParameter(values: Buffer): boolean {
  const end = values.length;
  let at = 2 + 2 * values.readUInt16BE(0);
  if (at + 2 > end) return true;
  const count = values.readUInt16BE(at);
  at += 2;
  for (let index = 0; index < count; index++) {
    if (at + 4 > end) return true;
    const size = values.readInt32BE(at);
    at += 4;
    if (size < 0) continue;
    if (at + size > end) return true;
    if (size <= WORD_MAX && VOLATILE.test(values.toString('latin1', at, at + size))) return true;
    at += size;
  }
  return false;
}
