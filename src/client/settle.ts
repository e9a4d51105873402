/**
 * What a session asks its server at the end of a transaction that may have changed session state: which values do the
 * touched settings have, and is there anything left that ties the client to this server? Called by client/lease.
 *
 * The one idea: effects are suspected from the text but established by asking. Rollback, savepoints, SET LOCAL,
 * functions and statements that failed halfway all come out right, because the server is asked what is, not what was
 * done. One query, only after statements that set or made something.
 */
import { readTextRow, ServerMessage } from '../protocol/messages.ts';
import type { Note } from '../protocol/outstanding.ts';
import { quoteLiteral } from '../server/settings.ts';
import type { PinReason } from '../sql/effects.ts';
import { preparedIn } from '../sql/prepared.ts';
import { TEXT_BYTES_MAX } from '../sql/verdict.ts';

/** What a server has under names that are not the proxy's: statements of SQL-level PREPARE. */
const FROM_SQL = `FROM pg_catalog.pg_prepared_statements WHERE from_sql OR name OPERATOR(pg_catalog.!~) '^pgweir_[0-9]+$'`;

/** Pins whose cause the server can be asked for, each with a query that counts what there is of it. */
const questions: readonly (readonly [PinReason, string])[] = [
  ['listen', 'SELECT count(*) FROM pg_catalog.pg_listening_channels()'],
  [
    'lock',
    `SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()`,
  ],
  [
    'temp',
    `SELECT count(*) FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()`,
  ],
  ['prepare', `SELECT count(*) ${FROM_SQL}`],
  ['hold', 'SELECT count(*) FROM pg_catalog.pg_cursors WHERE is_holdable'],
];

/** Reasons that can be asked for. */
export const askedReasons: readonly PinReason[] = questions.map(([reason]) => reason);

export interface Findings {
  /** Values of the settings asked for, in their order; null: not set. */
  values: (string | null)[];
  /** Which of the settings asked about are back at the default of the server's session. */
  defaults: string[];
  /** Reasons to stay pinned, of those that can be asked for; null when not asked. */
  pins: PinReason[] | null;
}

/** What to ask: the values of `settings`, whether `resets` are at their default, and with `isProbed` what ties. */
export interface Question {
  settings: readonly string[];
  resets: readonly string[];
  isProbed: boolean;
}

/** A setting that nobody has set for the session; those without a row (role, custom ones) have no default but these. */
function isDefault(name: string): string {
  const literal = quoteLiteral(name);
  return `coalesce((SELECT source OPERATOR(pg_catalog.<>) 'session' FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) OPERATOR(pg_catalog.=) ${literal}), coalesce(pg_catalog.current_setting(${literal}, true), '') OPERATOR(pg_catalog.=) ANY ('{"",none}'))`;
}

/** The SQL for a question. */
export function settleQuery({ settings, resets, isProbed }: Question): string {
  const values = settings.map((name) => `pg_catalog.current_setting(${quoteLiteral(name)}, true)`);
  const defaults = resets.map(isDefault);
  const counts = isProbed ? questions.map(([, sql]) => `(${sql})`) : [];
  return `SELECT ${[...values, ...defaults, ...counts].join(', ')}`;
}

/** A note for the entry of `settleQuery`; `done` gets what was found, or null when the server could not say. */
export function settleNote({ settings, resets, isProbed }: Question, done: (findings: Findings | null) => void): Note {
  let row: (string | null)[] | null = null;
  return {
    message(type, bytes) {
      if (type === ServerMessage.DataRow) row = readTextRow(bytes.subarray(5));
    },
    done() {
      if (row === null) return done(null);
      const defaults = resets.filter((_, index) => row![settings.length + index] === 't');
      const counts = row.slice(settings.length + resets.length);
      const pins = isProbed
        ? questions.map(([reason]) => reason).filter((_, index) => Number(counts[index]) > 0)
        : null;
      done({ values: row.slice(0, settings.length), defaults, pins });
    },
    dropped: () => done(null),
  };
}

/** A statement of SQL-level PREPARE, as the body of a Parse would have it: text, zero, parameter types. Latin-1. */
export interface Prepared {
  name: string;
  body: Buffer;
}

/**
 * The SQL that asks for all statements of SQL-level PREPARE; texts are null when they are too long to keep, all together: each is that of its
 * whole Query, so a thousand of one message would be a thousand times that.
 */
export const preparedQuery = `SELECT name, CASE WHEN pg_catalog.sum(pg_catalog.octet_length(statement)) OVER () OPERATOR(pg_catalog.<=) ${TEXT_BYTES_MAX} THEN statement END, from_sql, pg_catalog.array_to_string(parameter_types::pg_catalog.oid[], ' ') ${FROM_SQL}`;

/** A note for the entry of `preparedQuery`; `done` gets the statements, or null when one of them cannot be told. */
export function preparedNote(done: (statements: Prepared[] | null) => void): Note {
  const all: (Prepared | null)[] = [];
  return {
    message(type, bytes) {
      if (type === ServerMessage.DataRow) all.push(readPrepared(readTextRow(bytes.subarray(5))));
    },
    done: () => done(all.includes(null) ? null : (all as Prepared[])),
    dropped: () => done(null),
  };
}

function readPrepared([name, statement, isFromSql, types]: (string | null)[]): Prepared | null {
  if (name == null || statement == null || types == null) return null;
  const whole = Buffer.from(statement, 'latin1');
  const text = isFromSql === 't' ? preparedIn(whole, name) : whole;
  if (text === null) return null;
  const oids = types === '' ? [] : types.split(' ').map(Number);
  const tail = Buffer.alloc(3 + 4 * oids.length); // A zero, the number of types, the types.
  tail.writeUInt16BE(oids.length, 1);
  for (const [index, oid] of oids.entries()) tail.writeUInt32BE(oid, 3 + 4 * index);
  return { name, body: Buffer.concat([text, tail]) };
}

/** The SQL that gives up what `preparedQuery` has found. */
export function deallocateQuery(statements: readonly Prepared[]): string {
  return statements.map(({ name }) => `DEALLOCATE "${name.replaceAll('"', '""')}"`).join('; ');
}
