/**
 * SQL that names prepared statements (PREPARE, EXECUTE, DEALLOCATE), put in the server's words: a name of the client's
 * that stands for a statement of the protocol level has another name on servers. Pure functions, called by
 * client/request.
 *
 * The one idea: Postgres has one namespace for both levels and looks names up when a text runs, so texts are kept as
 * the client wrote them and translated each time they are used.
 */
import { isOurs, type Statement } from '../server/statements.ts';
import type { Reference } from '../sql/effects.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Names } from './names.ts';
import { type Renaming, rename, withName } from './rewrite.ts';

/** A statement of the protocol level that a text names. */
interface Mention {
  reference: Reference;
  statement: Statement;
}

export interface Translation {
  text: Buffer;
  mentions: readonly Mention[];
  /** An error of the server, in the client's words. */
  replaceError(bytes: Buffer): Buffer;
}

/** How a name looks on servers that is spelled like one of ours but is the client's. */
export function strangeName(name: string): string {
  return `${name}?`;
}

/** `text`, which was judged to be `verdict`, in the server's words; null when it stays as it is. */
export function translate(text: Buffer, { effects }: Verdict, names: Names): Translation | null {
  if (effects === null || effects.references.length === 0) return null;
  const mentions: Mention[] = [];
  const renamings: Renaming[] = [];
  const gone = new Set<string>();
  for (const reference of effects.references) {
    const { name, command } = reference;
    const statement = gone.has(name) ? undefined : names.get(name);
    if (statement !== undefined) {
      mentions.push({ reference, statement });
      renamings.push({ reference, name: statement.name });
    } else if (isOurs(name)) renamings.push({ reference, name: strangeName(name) });
    if (command === 'deallocate') gone.add(name);
  }
  if (renamings.length === 0) return null;
  return {
    text: rename(text, renamings),
    mentions,
    replaceError: (bytes) => {
      const theirs = new Map(renamings.map(({ reference, name }) => [name, reference.name]));
      return [...theirs].reduce((all, [ours, name]) => withName(all, ours, name), bytes);
    },
  };
}
