/**
 * Reads a pgbouncer.ini: sections of `key = value`, and `%include`, which goes on in the section in which it stands (PgBouncer's reader,
 * libusual's cfparser.c). Called by config/import.
 */

export type Section = Map<string, string>;

/** Lines of `key = value` beneath `[section]`; ; and # begin comments. Throws an Error with file and line. `include`: gives the text of a file. */
export function readIni(text: string, include: (file: string) => string): Map<string, Section> {
  const reader = new IniReader(include);
  reader.read(text, '', 0);
  return reader.sections;
}

class IniReader {
  readonly sections = new Map<string, Section>();
  readonly #include: (file: string) => string;
  #section: Section | null = null;

  constructor(include: (file: string) => string) {
    this.#include = include;
  }

  read(text: string, file: string, depth: number): void {
    if (depth > 10) throw new Error('%include goes in a circle');
    for (const [index, raw] of text.split(/\r?\n/).entries()) {
      const line = raw.trim();
      if (line === '' || line.startsWith(';') || line.startsWith('#')) continue;
      const [, included] = /^%include\s+(.+)$/.exec(line) ?? [];
      if (included !== undefined) this.read(this.#include(included), `${included}, `, depth + 1);
      else if (!this.#take(line)) throw new Error(`${file}line ${index + 1}: expected key = value beneath [section]`);
    }
  }

  #take(line: string): boolean {
    const [, name] = /^\[(\w+)\]$/.exec(line) ?? [];
    if (name !== undefined) {
      this.#section = this.sections.get(name) ?? new Map();
      this.sections.set(name, this.#section);
      return true;
    }
    const [, key, value] = /^("(?:[^"]|"")+"|[^\s=]+)\s*=\s*(.*)$/.exec(line) ?? [];
    if (key === undefined || this.#section === null) return false;
    this.#section.set(key.replace(/^"(.*)"$/, '$1').replaceAll('""', '"'), value!);
    return true;
  }
}

/** key=value key='it''s' … as libpq has them. */
export function readConnectionString(line: string): Section {
  const values = new Map<string, string>();
  for (const [, key, quoted, bare] of line.matchAll(/([\w]+)\s*=\s*(?:'((?:[^']|'')*)'|(\S*))/g))
    values.set(key!, quoted?.replaceAll("''", "'") ?? bare ?? '');
  return values;
}
