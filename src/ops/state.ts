/**
 * The state directory: small files that outlive the process. Used by ops/switchboard and ops/memory.
 *
 * The one idea: a file is written beside its old self and renamed, so that what is read at a start is whole; and one that
 * cannot be read is put aside and said to be so, never a reason not to start.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { z } from 'zod';
import { messageOf } from '../util/errors.ts';

export class StateDir {
  readonly #dir: string | null;
  /** What was wrong with files that were read, each in a sentence. */
  readonly problems: string[] = [];

  /** `dir` null: nothing is kept. */
  constructor(dir: string | null) {
    this.#dir = dir;
  }

  get isKept(): boolean {
    return this.#dir !== null;
  }

  /** What `name` holds; null: nothing, or nothing of use (then there is a problem more). */
  load<Schema extends z.ZodType>(name: string, schema: Schema): z.output<Schema> | null {
    if (this.#dir === null) return null;
    const file = join(this.#dir, name);
    if (!existsSync(file)) return null;
    try {
      return schema.parse(JSON.parse(readFileSync(file, 'utf8')));
    } catch (thrown) {
      renameSync(file, `${file}.bad`);
      this.problems.push(`${file} could not be read, and is ${file}.bad now: ${messageOf(thrown)}`);
      return null;
    }
  }

  /** Throws when it cannot be written. */
  save(name: string, value: unknown): void {
    const file = this.#open(name);
    writeFileSync(`${file}.new`, JSON.stringify(value));
    renameSync(`${file}.new`, file);
  }

  /** As `save`, without making anybody wait. */
  async saveLater(name: string, value: unknown): Promise<void> {
    const file = this.#open(name);
    await writeFile(`${file}.new`, JSON.stringify(value));
    await rename(`${file}.new`, file);
  }

  /** Adds a line. Throws when it cannot be written. */
  append(name: string, value: unknown): void {
    appendFileSync(this.#open(name), `${JSON.stringify(value)}\n`);
  }

  #open(name: string): string {
    mkdirSync(this.#dir!, { recursive: true });
    return join(this.#dir!, name);
  }
}
