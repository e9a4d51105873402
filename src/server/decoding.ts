/**
 * What test_decoding writes, as far as the names of tables go. Pure. Called by server/changes-worker with the text of each change.
 *
 *     BEGIN 771      table public.plans: UPDATE: id[integer]:7 …      table a.b, a."C: d": TRUNCATE: (no-flags)      COMMIT 771
 *
 * The one idea: only the beginning of a line is read, up to the colon behind the names; the rest may be as long as a row.
 *
 * Invariant: whatever it is given, it does not throw; what it does not understand counts as a change of every table.
 */

/** Schema and name. */
export type TableName = readonly [string, string];

export class Decoder {
  /** Characters of a line that are looked at: room for many names of the greatest length. */
  static readonly PREFIX_MAX = 64 * 1024;

  readonly #onCommit: (xid: number, tables: TableName[] | 'all') => void;
  readonly #tables = new Map<string, TableName>();
  #isAll = false;

  constructor(onCommit: (xid: number, tables: TableName[] | 'all') => void) {
    this.#onCommit = onCommit;
  }

  add(line: string): void {
    if (line.startsWith('BEGIN')) return this.#clear();
    if (line.startsWith('COMMIT')) {
      const xid = Number(/^COMMIT (\d+)/.exec(line)?.[1] ?? 0);
      if (this.#isAll || this.#tables.size > 0) this.#onCommit(xid, this.#isAll ? 'all' : [...this.#tables.values()]);
      return this.#clear();
    }
    if (line.startsWith('message:')) return; // pg_logical_emit_message: no table.
    const names = line.startsWith('table ') ? namesIn(line) : null;
    if (names === null) this.#isAll = true;
    else for (const name of names) this.#tables.set(name.join('\0'), name);
  }

  #clear(): void {
    this.#tables.clear();
    this.#isAll = false;
  }
}

const NAMES = /(?:"((?:[^"]|"")*)"|([^".,:\s]+))\.(?:"((?:[^"]|"")*)"|([^".,:\s]+))(, |: [A-Z])/y;

/** The names behind `table `; null: they cannot be read. */
function namesIn(line: string): TableName[] | null {
  const names: TableName[] = [];
  NAMES.lastIndex = 'table '.length;
  for (;;) {
    const found = NAMES.exec(line);
    if (found === null) return null;
    const [, quotedSchema, schema, quotedName, name, behind] = found;
    names.push([unquoted(quotedSchema) ?? schema!, unquoted(quotedName) ?? name!]);
    if (behind !== ', ') return names;
  }
}

function unquoted(name: string | undefined): string | undefined {
  return name?.replaceAll('""', '"');
}
