/**
 * What names mean in one database: which tables a statement reads, or may write beyond those that it names, and whether its
 * functions give the same answer twice. The second half of the verdict of the read cache (sql/reading is the first). Read as a whole
 * from the catalogue by the control user; pure once it is made. Called by cache/.
 *
 * The one idea: a name is believed only where it can mean one thing. If two schemas of a search path have a table of that name, or a
 * user has made a function, a type or an operator with the name of a built-in one, the statement is refused.
 *
 * Invariant: what is kept is immutable; a change of the catalogue makes another Relations (its `digest` differs).
 */

import { createHash } from 'node:crypto';
import { fold } from '../util/fold.ts';
import type { Query } from './catalog.ts';
import type { Named, Reading } from './reading.ts';

type RelationKind =
  /** Ordinary or partitioned. */
  | 'table'
  | 'view'
  /** REFRESH leaves no trace in the WAL. */
  | 'materialized'
  | 'foreign';

export interface Relation extends Named {
  oid: number;
  kind: RelationKind;
  /** Its changes are not in the WAL. */
  isUnlogged: boolean;
  hasRowSecurity: boolean;
  /** It has triggers of users, or rules: a write to it may write anything. */
  hasHidden: boolean;
  /** The text of a view. */
  definition: string;
}

/** The tables that a write may change: 'all' when that cannot be known. */
export type WriteSet = readonly number[] | 'all';

/** First object id that is not Postgres' own. */
const USER_OID = 16_384;

const RELATIONS = `
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity,
    EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
      OR (c.relhasrules AND c.relkind NOT IN ('v', 'm')),
    CASE WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid >= ${USER_OID} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')`;
const PARENTS = 'SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits';
/** Foreign keys that write: ON DELETE or ON UPDATE CASCADE, SET NULL, SET DEFAULT. */
const CASCADES = `
  SELECT confrelid, conrelid FROM pg_catalog.pg_constraint
  WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))`;
const FUNCTIONS = `
  SELECT proname, bool_and(provolatile = 'i'), bool_or(oid >= ${USER_OID}) FROM pg_catalog.pg_proc GROUP BY proname`;
const TYPES = `
  SELECT t.typname, bool_or(t.oid >= ${USER_OID}) FROM pg_catalog.pg_type t
  WHERE t.typtype IN ('b', 'r', 'm') AND NOT (t.typcategory = 'A' AND t.typname LIKE '\\_%') OR t.oid >= ${USER_OID}
  GROUP BY t.typname`;
const OPERATORS = `SELECT DISTINCT oprname FROM pg_catalog.pg_operator WHERE oid >= ${USER_OID}`;
/** Everything else that may change an answer, or who may have it. */
const DIGEST = `
  SELECT pg_catalog.md5(pg_catalog.concat_ws('|',
    (SELECT string_agg(concat_ws(',', attrelid, attnum, attname, atttypid, atttypmod, attisdropped, attacl), ';' ORDER BY attrelid, attnum)
       FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_class c ON c.oid = attrelid
       WHERE attrelid >= ${USER_OID} AND attnum > 0 AND c.relpersistence <> 't' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')),
    (SELECT string_agg(concat_ws(',', oid, relacl, relowner, reloptions), ';' ORDER BY oid)
       FROM pg_catalog.pg_class WHERE relpersistence <> 't' AND relkind IN ('r', 'p', 'v', 'm', 'f')),
    (SELECT string_agg(concat_ws(',', oid, nspname, nspacl, nspowner), ';' ORDER BY oid)
       FROM pg_catalog.pg_namespace WHERE nspname NOT LIKE 'pg\\_%temp\\_%'),
    (SELECT string_agg(concat_ws(',', roleid, member), ';' ORDER BY roleid, member) FROM pg_catalog.pg_auth_members),
    (SELECT string_agg(concat_ws(',', oid, rolname, rolsuper, rolinherit, rolbypassrls), ';' ORDER BY oid) FROM pg_catalog.pg_roles),
    (SELECT string_agg(concat_ws(',', setdatabase, setrole, setconfig), ';' ORDER BY setdatabase, setrole) FROM pg_catalog.pg_db_role_setting),
    (SELECT string_agg(concat_ws(',', oid, xmin), ';' ORDER BY oid) FROM pg_catalog.pg_proc WHERE oid >= ${USER_OID}),
    (SELECT string_agg(concat_ws(',', oid, typname, typnamespace, typtype), ';' ORDER BY oid) FROM pg_catalog.pg_type
       WHERE oid >= ${USER_OID} AND typtype IN ('e', 'd', 'r', 'm')),
    (SELECT string_agg(concat_ws(',', oid, enumtypid, enumlabel, enumsortorder), ';' ORDER BY oid) FROM pg_catalog.pg_enum)))`;

/**
 * Built-in functions that are only STABLE, but whose answer depends on nothing except their arguments and settings that are part
 * of the key (cache/key); measured over pg_proc of Postgres 18.
 */
const stable = new Set(
  `json_agg json_agg_strict jsonb_agg jsonb_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique
   json_object_agg_unique_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict
   json_build_array json_build_object jsonb_build_array jsonb_build_object row_to_json to_json to_jsonb array_to_json
   array_to_string concat concat_ws format to_char to_date to_number to_timestamp timezone date_trunc date_part extract age
   make_timestamptz quote_literal quote_nullable quote_ident to_tsvector to_tsquery plainto_tsquery phraseto_tsquery
   websearch_to_tsquery ts_headline convert convert_from convert_to length generate_series date_add date_subtract
   string_agg array_agg timestamptz timestamp date time timetz interval text json_populate_record jsonb_populate_record
   json_populate_recordset jsonb_populate_recordset json_to_record jsonb_to_record json_to_recordset jsonb_to_recordset
   unnest overlaps`.split(/\s+/),
);

const kinds: Record<string, RelationKind> = { r: 'table', p: 'table', v: 'view', m: 'materialized', f: 'foreign' };

export class Relations {
  readonly digest: string;
  readonly #byOid = new Map<number, Relation>();
  readonly #byName = new Map<string, Relation>();
  readonly #parents = new Map<number, number[]>();
  readonly #children = new Map<number, number[]>();
  readonly #cascades = new Map<number, number[]>();
  /** Built-in functions that always give the same answer; and names that users have given. */
  readonly #immutable = new Set<string>();
  readonly #userFunctions = new Set<string>();
  readonly #types = new Set<string>();
  readonly #userTypes = new Set<string>();
  readonly #userOperators: ReadonlySet<string>;

  constructor(answers: {
    relations: Row[];
    parents: Row[];
    cascades: Row[];
    functions: Row[];
    types: Row[];
    operators: Row[];
    digest: Row[];
  }) {
    for (const [oid, schema, name, kind, persistence, hasRowSecurity, hasHidden, definition] of answers.relations) {
      const relation: Relation = {
        oid: Number(oid),
        schema: String(schema),
        name: String(name),
        kind: kinds[String(kind)]!,
        isUnlogged: persistence === 'u',
        hasRowSecurity: isTrue(hasRowSecurity),
        hasHidden: isTrue(hasHidden),
        definition: String(definition ?? ''),
      };
      this.#byOid.set(relation.oid, relation);
      this.#byName.set(nameOf(relation), relation);
    }
    for (const [child, parent] of answers.parents) {
      add(this.#parents, Number(child), Number(parent));
      add(this.#children, Number(parent), Number(child));
    }
    for (const [from, to] of answers.cascades) add(this.#cascades, Number(from), Number(to));
    for (const [name, isImmutable, isUsers] of answers.functions) {
      if (isTrue(isUsers)) this.#userFunctions.add(String(name));
      else if (isTrue(isImmutable)) this.#immutable.add(String(name));
    }
    for (const [name, isUsers] of answers.types) (isTrue(isUsers) ? this.#userTypes : this.#types).add(String(name));
    this.#userOperators = new Set(answers.operators.map(([name]) => String(name)));
    const { relations, parents, cascades, functions, operators } = answers;
    const hash = createHash('sha256').update(String(answers.digest[0]?.[0]));
    for (const rows of [relations, parents, cascades, functions, operators]) hash.update(fingerprint(rows));
    this.digest = hash.digest('hex');
  }

  /** Reads all of it; takes some 20 ms, and more with thousands of tables. */
  static async read(query: Query): Promise<Relations> {
    // Names in the texts of views are qualified then.
    await query("SELECT pg_catalog.set_config('search_path', '', false)");
    return new Relations({
      relations: await query(RELATIONS),
      parents: await query(PARENTS),
      cascades: await query(CASCADES),
      functions: await query(FUNCTIONS),
      types: await query(TYPES),
      operators: await query(OPERATORS),
      digest: await query(DIGEST),
    });
  }

  relation(oid: number): Relation | undefined {
    return this.#byOid.get(oid);
  }

  /** The relation of this name in this schema. */
  named(schema: string, name: string): Relation | undefined {
    return this.#byName.get(nameOf({ schema, name }));
  }

  /** What a name means to who has this search path (without the schemas that are implied); a text says why that is not known. */
  resolve({ schema, name }: Named, path: readonly string[]): Relation | string {
    if (schema === 'pg_catalog' || schema === 'information_schema' || schema.startsWith('pg_'))
      return `it reads ${schema}`;
    if (schema !== '') return this.named(schema, name) ?? `${schema}.${name} is not known`;
    // The catalogue comes first, whatever the path.
    if (name.startsWith('pg_')) return `${name} may be one of the catalogue`;
    const found = path.flatMap((each) => this.named(each, name) ?? []);
    if (found.length > 1) return `${name} is in several schemas of the search path`;
    return found[0] ?? `${name} is not known`;
  }

  /** Why what a statement calls may give another answer next time; '': it does not. */
  refusalOf(reading: Reading): string {
    const { functions, types, operators, members } = reading;
    const call = functions.find((name) => !this.#isSteady(name));
    if (call !== undefined) return `${call} may give another answer each time`;
    const type = types.find((name) => !this.#types.has(name) || this.#userTypes.has(name) || name.startsWith('reg'));
    if (type !== undefined) return `type ${type} is not one of the built-in ones`;
    const operator = operators.find((name) => name.includes('.') || this.#userOperators.has(name));
    if (operator !== undefined) return `operator ${operator} is a user’s`;
    const member = members.find((name) => this.#userFunctions.has(name));
    return member === undefined ? '' : `${member} may be a function`;
  }

  #isSteady(name: string): boolean {
    return !this.#userFunctions.has(name) && (this.#immutable.has(name) || stable.has(name));
  }

  /** The tables that may change when somebody writes to this one. */
  writeSet(oid: number): WriteSet {
    const found = new Set<number>();
    const waiting = [oid];
    while (waiting.length > 0) {
      const next = waiting.pop()!;
      if (found.has(next)) continue;
      found.add(next);
      if (this.#byOid.get(next)?.hasHidden) return 'all';
      for (const map of [this.#parents, this.#children, this.#cascades]) waiting.push(...(map.get(next) ?? []));
    }
    return [...found];
  }

  /** A relation and those that it is a part of: what has changed when its rows have, for sure and in full (the WAL tells the rest). */
  withAncestors(oid: number): readonly number[] {
    const found = new Set([oid]);
    for (const each of found) for (const parent of this.#parents.get(each) ?? []) found.add(parent);
    return [...found];
  }
}

type Row = readonly unknown[];

/** Control connections give booleans as such, tests as text. */
function isTrue(value: unknown): boolean {
  return value === true || value === 't';
}

function nameOf({ schema, name }: Named): string {
  return JSON.stringify([schema, name]);
}

function add(map: Map<number, number[]>, key: number, value: number): void {
  const all = map.get(key);
  if (all === undefined) map.set(key, [value]);
  else all.push(value);
}

function fingerprint(rows: readonly Row[]): string {
  return rows
    .map((row) => row.join())
    .sort()
    .join(';');
}

/** The schemas of a search_path setting, `user` standing for "$user". Names that are quoted keep their case. */
export function schemasOf(setting: string, user: string): string[] {
  const found: string[] = [];
  for (const [, quoted, plain] of setting.matchAll(/"((?:[^"]|"")*)"|([^\s,"]+)/g)) {
    const name = quoted === undefined ? fold(plain!) : quoted.replaceAll('""', '"');
    found.push(name === '$user' ? user : name);
  }
  return [...new Set(found)];
}
