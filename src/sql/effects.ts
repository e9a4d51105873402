/**
 * What a statement does to its session, as far as its tokens tell. Called by sql/verdict for every new text.
 *
 * The one idea: most statements are proved free of session effects from tokens alone (first key word, and every
 * `name(` on a list of harmless names). The rest either names its effect (SET, LISTEN, …) or leaves names that might
 * be user functions to the real parser (`unknown`).
 *
 * Over-estimating is safe and cheap where the truth can be asked for: after a transaction that may have touched
 * settings, locks, channels, temporary tables, SQL-level prepared statements or held cursors, the session asks the
 * server what is left of it (client/settle). Only `pins` are believed as they are.
 *
 * Documented limits: triggers, rules, column defaults, casts and operators that call user functions are not seen.
 */
import { fold } from '../util/fold.ts';
import { harmlessFunctions } from './builtins.ts';
import { Token, type Tokens } from './shape.ts';

/** Why a client keeps its server although no transaction is open. */
export type PinReason =
  /** Asked for by pool mode session or a replication connection. */
  | 'session'
  /** LISTEN is in force. */
  | 'listen'
  /** A session-level advisory lock is held. */
  | 'lock'
  /** A temporary table (or view, sequence) exists. */
  | 'temp'
  /** PREPARE made a statement at SQL level that cannot become one of the protocol level. */
  | 'prepare'
  /** A cursor WITH HOLD is open. */
  | 'hold'
  /** LOAD brought a library in. */
  | 'load'
  /** currval or lastval was asked for outside the transaction of its nextval. */
  | 'sequence'
  /** setseed steers the random numbers to come. */
  | 'seed'
  /** set_config or pg_settings with a name that the text does not show. */
  | 'setting'
  /** A user function, DO or CALL that cannot be judged. */
  | 'function'
  /** A text that the parser did not take: too large, too many waiting, or quarantined. */
  | 'opaque'
  /** A temporary replication slot, a replication origin, or a base backup. */
  | 'replication'
  /** The text cannot be read reliably: standard_conforming_strings is off, or the encoding hides quotes. */
  | 'encoding'
  /** Replies can no longer be told apart. */
  | 'desync';

/** Where a text names a prepared statement, which may be one of the protocol level and then has another name. */
export interface Reference {
  command: 'prepare' | 'execute' | 'deallocate';
  name: string;
  /** Where the name stands in the text, quotes included: offsets from its start. */
  start: number;
  end: number;
}

export interface Effects {
  /** Settings whose session value may have changed, by lower-case name. */
  settings: readonly string[];
  /** Settings that went back to the session's default. */
  resets: readonly string[];
  isResetAll: boolean;
  /** May have made something that can be asked for: a channel, lock, temporary table, SQL statement, held cursor. */
  isProbed: boolean;
  /** Should have made nothing of the kind, but may have: asked for all the same. */
  isChecked: boolean;
  /** May have undone such a thing. */
  isUndoing: boolean;
  /** The settings are touched by a PREPAREd statement: at each EXECUTE, which does not show it. */
  isPreparing: boolean;
  /** Is DEALLOCATE ALL or DISCARD ALL, and nothing else. */
  isForgetting: boolean;
  /** COPY FROM STDIN: what is sent behind it may be read as its data. */
  isCopyIn: boolean;
  /** Calls pg_cancel_backend or pg_terminate_backend: the process may be one of ours (client/signal). */
  isSignal: boolean;
  pins: readonly PinReason[];
  /** In the order of the text. */
  references: readonly Reference[];
}

export interface Findings {
  effects: Effects | null;
  /** Names before a parenthesis that may be user functions; non-empty or `needsParser`: ask sql/parser. */
  unknown: readonly string[];
  needsParser: boolean;
}

interface Draft {
  settings: string[];
  resets: string[];
  isResetAll: boolean;
  isProbed: boolean;
  isChecked: boolean;
  isUndoing: boolean;
  isPreparing: boolean;
  isForgetting: boolean;
  isCopyIn: boolean;
  isSignal: boolean;
  pins: PinReason[];
  references: Reference[];
  unknown: string[];
  needsParser: boolean;
  /** There is a PREPARE. */
  hasPrepare: boolean;
  isEmpty: boolean;
}

const HARMLESS: Findings = { effects: null, unknown: [], needsParser: false };

const blank = (): Draft => ({
  ...pinning(),
  settings: [],
  resets: [],
  pins: [],
  references: [],
  unknown: [],
  needsParser: false,
  hasPrepare: false,
  isEmpty: true,
});

const draft = blank();

/** Looks at every statement in `tokens`. */
export function findEffects(tokens: Tokens): Findings {
  if (!draft.isEmpty) Object.assign(draft, blank());
  let first = 0;
  for (let at = 0; at <= tokens.count; at++) {
    if (at < tokens.count && tokens.kinds[at] !== Token.Semicolon) continue;
    if (at > first) findInStatement(tokens, first, at);
    first = at + 1;
  }
  if (draft.isEmpty) return HARMLESS;
  const { unknown, needsParser, hasPrepare: _, isEmpty: __, ...effects } = draft;
  effects.settings = distinct(effects.settings);
  effects.resets = distinct(effects.resets);
  effects.pins = distinct(effects.pins);
  const isHarmless =
    !effects.isProbed &&
    !effects.isChecked &&
    !effects.isUndoing &&
    !effects.isResetAll &&
    !effects.isCopyIn &&
    !effects.isSignal &&
    effects.settings.length + effects.resets.length + effects.pins.length + effects.references.length === 0;
  return { effects: isHarmless ? null : effects, unknown, needsParser };
}

/** What is in the list, each but once. */
function distinct<T>(list: T[]): T[] {
  return list.length < 2 ? list : [...new Set(list)];
}

/** Both effects together. */
export function mergeEffects(a: Effects | null, b: Effects | null): Effects | null {
  if (a === null || b === null) return a ?? b;
  return {
    settings: distinct([...a.settings, ...b.settings]),
    resets: distinct([...a.resets, ...b.resets]),
    isResetAll: a.isResetAll || b.isResetAll,
    isProbed: a.isProbed || b.isProbed,
    isChecked: a.isChecked || b.isChecked,
    isUndoing: a.isUndoing || b.isUndoing,
    isPreparing: a.isPreparing || b.isPreparing,
    isForgetting: a.isForgetting && b.isForgetting,
    isCopyIn: a.isCopyIn || b.isCopyIn,
    isSignal: a.isSignal || b.isSignal,
    pins: distinct([...a.pins, ...b.pins]),
    references: a.references.length > 0 ? a.references : b.references,
  };
}

/** Effects that consist of pins only. */
export function pinning(...pins: PinReason[]): Effects {
  return {
    settings: [],
    resets: [],
    isResetAll: false,
    isProbed: false,
    isChecked: false,
    isUndoing: false,
    isPreparing: false,
    isForgetting: false,
    isCopyIn: false,
    isSignal: false,
    pins,
    references: [],
  };
}

/** Effects that consist of something that the server can be asked for. */
export const probing: Effects = { ...pinning(), isProbed: true };

function mark(): Draft {
  draft.isEmpty = false;
  return draft;
}

/** One statement, tokens [first, end). */
function findInStatement(tokens: Tokens, first: number, end: number): void {
  switch (tokens.name(first)) {
    case 'select':
    case 'values':
    case 'table':
    case 'insert':
    case 'update':
    case 'delete':
    case 'merge':
    case 'with':
      findInExpressions(tokens, first, end);
      break;
    case 'explain':
      findInExpressions(tokens, first, end);
      for (let at = first + 1; at < end; at++) if (tokens.is(at, 'execute')) findReference('execute', tokens, at + 1);
      break;
    case 'copy':
      findInExpressions(tokens, afterName(tokens, first + 1), end);
      for (let at = first + 1; at < end; at++) if (tokens.is(at, 'stdin')) mark().isCopyIn = true;
      break;
    case '':
      // ( SELECT … ) or something that is no statement.
      if (tokens.kinds[first] === Token.Open) findInExpressions(tokens, first, end);
      break;
    case 'begin':
    case 'start':
    case 'commit':
    case 'end':
    case 'abort':
    case 'rollback':
    case 'savepoint':
    case 'release':
    case 'show':
    case 'fetch':
    case 'move':
    case 'lock':
    case 'notify':
    case 'comment':
    case 'grant':
    case 'revoke':
    case 'truncate':
    case 'vacuum':
    case 'analyze':
    case 'analyse':
    case 'cluster':
    case 'reindex':
    case 'checkpoint':
    case 'reassign':
    case 'security':
      break;
    case 'set':
      findInSet(tokens, first + 1, end);
      break;
    case 'reset':
      findInReset(tokens, first + 1);
      break;
    case 'discard':
      mark().isProbed = true;
      draft.isForgetting = first === 0 && end >= tokens.count - 1 && tokens.is(first + 1, 'all');
      break;
    case 'listen':
      mark().isProbed = true;
      break;
    case 'unlisten':
    case 'close':
    case 'drop':
      mark().isUndoing = true;
      break;
    case 'load':
      mark().pins.push('load');
      break;
    case 'do':
      mark().pins.push('function');
      break;
    case 'call':
      findInExpressions(tokens, first + 1, end);
      break;
    case 'prepare':
      if (!tokens.is(first + 1, 'transaction')) findInPrepare(tokens, first, end);
      break;
    case 'execute':
      findReference('execute', tokens, first + 1);
      findInExpressions(tokens, first + 2, end);
      break;
    case 'deallocate':
      mark().isUndoing = true;
      draft.isForgetting = first === 0 && end >= tokens.count - 1 && tokens.is(end - 1, 'all');
      findReference('deallocate', tokens, tokens.is(first + 1, 'prepare') && first + 2 < end ? first + 2 : first + 1);
      break;
    case 'declare':
      for (let at = first; at < end; at++) if (tokens.is(at, 'hold')) mark().isProbed = true;
      findInExpressions(tokens, first + 2, end);
      break;
    default:
      // CREATE, ALTER, REFRESH, IMPORT and whatever else: the parser knows. What is made in a schema that search_path
      // names may be temporary without saying so.
      mark().needsParser = true;
      if (tokens.is(first, 'create')) mark().isChecked = true;
      for (let at = first; at < end; at++) {
        if (tokens.is(at, 'as') && tokens.is(at + 1, 'execute')) findReference('execute', tokens, at + 2);
      }
      findInExpressions(tokens, first, end);
  }
}

/** Behind the (dotted) name at `at`, if there is one: its columns are no arguments. */
function afterName(tokens: Tokens, at: number): number {
  if (tokens.name(at) === '') return at;
  let next = at + 1;
  while (tokens.kinds[next] === Token.Dot && next < tokens.count) next += 2;
  return next;
}

/**
 * PREPARE: the statement inside runs at each EXECUTE, so whatever it does is believed from the start. What it makes ties nobody to a server,
 * unless it cannot be told from others in the same text (client/settle).
 */
function findInPrepare(tokens: Tokens, first: number, end: number): void {
  if (mark().hasPrepare) draft.isProbed = true;
  else draft.isChecked = draft.hasPrepare = true;
  findReference('prepare', tokens, first + 1);
  let at = first + 2;
  while (at < end && !tokens.is(at, 'as')) at++;
  const { settings } = mark();
  const before = settings.length;
  findInExpressions(tokens, at, end);
  if (settings.length > before) mark().isPreparing = true;
}

function findReference(command: Reference['command'], tokens: Tokens, at: number): void {
  const name = tokens.name(at);
  if (name === '' || (command === 'deallocate' && tokens.is(at, 'all'))) return;
  mark().references.push({ command, name, start: tokens.starts[at]!, end: tokens.ends[at]! });
}

/** The dotted name of a setting at `at`, in lower case. */
function settingName(tokens: Tokens, at: number): string {
  let name = fold(tokens.name(at));
  for (let dot = at + 1; tokens.kinds[dot] === Token.Dot && dot < tokens.count; dot += 2) {
    name += '.' + fold(tokens.name(dot + 1));
  }
  return name;
}

const characteristics = [
  'default_transaction_isolation',
  'default_transaction_read_only',
  'default_transaction_deferrable',
];
const identity = ['session_authorization', 'role'];
/** Settings that end with their transaction, however they are set. */
const transactional = new Set(['transaction_isolation', 'transaction_read_only', 'transaction_deferrable']);

function findInSet(tokens: Tokens, from: number, end: number): void {
  let at = from;
  const before = draft.settings.length;
  if (tokens.kinds[at + 1] === Token.Dot && at + 1 < end) return touch(settingName(tokens, at)); // session.x, local.x, …
  if (tokens.is(at, 'local')) return; // Ends with the transaction.
  if (tokens.is(at, 'session')) {
    if (tokens.is(at + 1, 'characteristics')) return void mark().settings.push(...characteristics);
    if (tokens.is(at + 1, 'authorization')) return void mark().settings.push(...identity);
    at++;
  }
  switch (tokens.name(at)) {
    case 'transaction':
    case 'constraints':
      return; // End with the transaction.
    case 'time':
      if (tokens.is(end - 1, 'default') || tokens.is(end - 1, 'local')) mark().resets.push('timezone');
      return void mark().settings.push('timezone');
    case 'schema':
      return void mark().settings.push('search_path');
    case 'names':
      return void mark().settings.push('client_encoding');
    case 'xml':
      return void mark().settings.push('xmloption');
    default:
      if (at < end) touch(settingName(tokens, at));
  }
  // SET … TO DEFAULT is RESET: which of the two it was, the server will tell.
  if (tokens.is(end - 1, 'default')) mark().resets.push(...draft.settings.slice(before));
}

/** A setting may have been given a value for the session. */
function touch(name: string): void {
  if (transactional.has(name)) return;
  if (name === 'seed') mark().pins.push('seed');
  else mark().settings.push(name);
}

function findInReset(tokens: Tokens, at: number): void {
  if (tokens.is(at, 'all')) mark().isResetAll = true;
  else if (tokens.is(at, 'session')) mark().resets.push(...identity);
  else if (tokens.is(at, 'time')) mark().resets.push('timezone');
  else mark().resets.push(settingName(tokens, at));
}

/** Words that may stand before a parenthesis and cannot name a function (reserved, or column names: keywords list). */
const grammar = new Set(
  `in values and or not exists any some all on using when then else case where from having limit offset select union
   intersect except returning row array like ilike similar check references primary unique default group lateral with
   window order only as into end distinct isnull notnull tablesample grouping`.split(/\s+/),
);

/** Looks at every `name(`, and for words that only the parser can place. */
function findInExpressions(tokens: Tokens, first: number, end: number): void {
  for (let at = first; at < end; at++) {
    switch (tokens.kinds[at]) {
      case Token.Open:
        if (at > first) findCall(tokens, at, first);
        break;
      case Token.Quoted:
        if (tokens.name(at) === 'pg_settings') findSettingsView(tokens, at, first);
        break;
      case Token.Word: {
        const size = tokens.ends[at]! - tokens.starts[at]!;
        if (size >= 4 && size <= 11) findWord(tokens, at, first);
        break;
      }
      default:
    }
  }
}

function findWord(tokens: Tokens, at: number, first: number): void {
  if (tokens.is(at, 'into')) {
    // INSERT INTO and MERGE INTO are plain; SELECT … INTO makes a table.
    if (!tokens.is(at - 1, 'insert') && !tokens.is(at - 1, 'merge')) mark().needsParser = true;
  } else if (tokens.is(at, 'temp') || tokens.is(at, 'temporary')) {
    mark().needsParser = true;
  } else {
    const byte = tokens.source[tokens.starts[at]!]!;
    if ((byte | 0x20) !== 0x70) return; // p…
    const name = tokens.name(at);
    if (name === 'pg_temp') mark().isProbed = true;
    else if (name === 'pg_settings') findSettingsView(tokens, at, first);
  }
}

/** UPDATE of the view pg_settings sets what its rows say. */
function findSettingsView(tokens: Tokens, at: number, first: number): void {
  let before = at - 1;
  if (before > first && tokens.kinds[before] === Token.Dot) before -= 2;
  if (tokens.is(before, 'only')) before--;
  if (tokens.is(before, 'update')) mark().pins.push('setting');
}

/** The token at `open` is a parenthesis: what stands before it? */
const signals = new Set(['pg_cancel_backend', 'pg_terminate_backend']);

function findCall(tokens: Tokens, open: number, first: number): void {
  const at = open - 1;
  const kind = tokens.kinds[at];
  if (kind !== Token.Word && kind !== Token.Quoted) return;
  const name = tokens.name(at);
  if (signals.has(name)) mark().isSignal = true;
  const isQualified = at - 1 > first && tokens.kinds[at - 1] === Token.Dot;
  if (isQualified) {
    if (tokens.name(at - 2) === 'pg_catalog') findFunction(tokens, name, open);
    else if (!isInsertTarget(tokens, at, first)) mark().unknown.push(`${tokens.name(at - 2)}.${name}`);
    return;
  }
  if (kind === Token.Word && (harmlessFunctions.has(name) || grammar.has(name))) return;
  if (kind === Token.Word && isPhrase(tokens, at, name)) return;
  if (tokens.is(at - 1, 'as') || isInsertTarget(tokens, at, first)) return; // An alias or a table with its columns.
  findFunction(tokens, name, open);
}

/** Words that could name a function, but here continue a phrase: OVER (, FILTER (, ORDER BY (, ON CONFLICT (. */
function isPhrase(tokens: Tokens, at: number, name: string): boolean {
  switch (name) {
    case 'over':
    case 'filter':
      return tokens.kinds[at - 1] === Token.Close;
    case 'by':
      return tokens.is(at - 1, 'order') || tokens.is(at - 1, 'partition') || tokens.is(at - 1, 'group');
    case 'conflict':
      return tokens.is(at - 1, 'on');
    default:
      return false;
  }
}

/** Is the name that ends at `at` the table of INSERT INTO? */
function isInsertTarget(tokens: Tokens, at: number, first: number): boolean {
  let before = at - 1;
  while (before - 1 >= first && tokens.kinds[before] === Token.Dot) before -= 2;
  return tokens.is(before, 'into');
}

function findFunction(tokens: Tokens, name: string, open: number): void {
  if (harmlessFunctions.has(name)) return;
  switch (name) {
    case 'set_config':
      return findSetConfig(tokens, open);
    case 'pg_advisory_lock':
    case 'pg_advisory_lock_shared':
    case 'pg_try_advisory_lock':
    case 'pg_try_advisory_lock_shared':
      mark().isProbed = true;
      return;
    case 'pg_advisory_unlock':
    case 'pg_advisory_unlock_shared':
    case 'pg_advisory_unlock_all':
      mark().isUndoing = true;
      return;
    case 'currval':
    case 'lastval':
      mark().pins.push('sequence');
      return;
    case 'setseed':
      mark().pins.push('seed');
      return;
    case 'pg_create_logical_replication_slot':
    case 'pg_create_physical_replication_slot':
    case 'pg_copy_logical_replication_slot':
    case 'pg_copy_physical_replication_slot':
    case 'pg_replication_origin_session_setup':
    case 'pg_replication_origin_session_reset':
    case 'pg_replication_origin_xact_setup':
    case 'pg_replication_origin_xact_reset':
    case 'pg_backup_start':
    case 'pg_backup_stop':
      mark().pins.push('replication');
      return;
    default:
      mark().unknown.push(name);
  }
}

/** set_config(name, value, is_local): the name must be a literal to be tracked; a literal `true` ends with the transaction. */
function findSetConfig(tokens: Tokens, open: number): void {
  const name = tokens.literal(open + 1);
  // Named notation may have any order: f(a => 1).
  if (name !== null && isLocal(tokens, open)) return;
  if (name === null && tokens.kinds[open + 1] === Token.Parameter && isLocal(tokens, open)) return;
  const asked = name ?? nameInWhere(tokens, open);
  if (asked !== null && tokens.kinds[open + 2] === Token.Comma) touch(fold(asked));
  else mark().pins.push('setting');
}

/** What pg_dump writes, and nothing else: set_config(name, '…', false) FROM pg_settings WHERE name = '…'. */
function nameInWhere(tokens: Tokens, open: number): string | null {
  if (!tokens.is(open + 1, 'name') || tokens.kinds[open + 6] !== Token.Close || !tokens.is(open + 7, 'from'))
    return null;
  const view = tokens.is(open + 8, 'pg_catalog') && tokens.kinds[open + 9] === Token.Dot ? open + 10 : open + 8;
  if (tokens.name(view) !== 'pg_settings' || !tokens.is(view + 1, 'where') || !tokens.is(view + 2, 'name')) return null;
  const isLast = view + 5 >= tokens.count || tokens.kinds[view + 5] === Token.Semicolon;
  return isLast && tokens.text(view + 3) === '=' ? tokens.literal(view + 4) : null;
}

/** Tokens of arguments that are looked at: calls may stand in one another. */
const ARGUMENTS_MAX = 100;

function isLocal(tokens: Tokens, open: number): boolean {
  const end = Math.min(tokens.count, open + ARGUMENTS_MAX);
  let depth = 0;
  let argument = 0;
  for (let at = open; at < end; at++) {
    const kind = tokens.kinds[at];
    if (kind === Token.Open) depth++;
    else if (kind === Token.Close && --depth === 0) return false;
    else if (kind === Token.Comma && depth === 1) argument++;
    else if (argument === 2 && depth === 1) return tokens.is(at, 'true') && tokens.kinds[at + 1] === Token.Close;
  }
  return false;
}
