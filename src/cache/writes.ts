/**
 * Which tables a statement may change, as far as its text and the catalogue tell. Pure. Called by client/written for every statement that is
 * not proved to be a read.
 *
 * The one idea: who does not know says 'all'. A write that is not noticed makes answers wrong; one too many only makes them dearer.
 */
import { type Relations, schemasOf, type WriteSet } from '../sql/relations.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Identity } from './key.ts';

export type Written =
  /** Nothing. */
  | 'nothing'
  /** Tables, by oid; or whatever there is. */
  | WriteSet
  /** Definitions or rights. */
  | 'definitions';

/** What a statement with this verdict may change, run with this identity. */
export function writtenBy(verdict: Verdict, identity: Identity, relations: Relations | null): Written {
  const { read, nature, shape, effects, control } = verdict;
  if (read !== 0) return 'nothing';
  if (control !== null && (control.kind === 'begin' || control.kind === 'commit' || control.kind === 'rollback'))
    return 'nothing';
  // Whose it is, and what it has done, is long forgotten.
  if (control?.kind === 'prepared') return 'all';
  // What a prepared statement of SQL, a function or a DO does is not in the text.
  if (effects?.references.some(({ command }) => command === 'execute')) return 'all';
  if (effects?.pins.includes('function') || effects?.pins.includes('opaque')) return 'all';
  if (shape !== null && (shape.state === 'pending' || shape.isUnparsed || shape.functions.length > 0)) return 'all';
  if (shape?.effects?.pins.includes('function') || shape?.effects?.pins.includes('opaque')) return 'all';
  if (nature === null || nature.kind === null) return 'all';
  if (nature.kind === 'ddl') return nature.isTemporary ? 'nothing' : 'definitions';
  if (nature.kind !== 'write') return 'nothing';
  const found = new Set<number>();
  const path = schemasOf(identity.searchPath ?? '', identity.role);
  for (const table of nature.tables) {
    if (!table.isWritten) continue;
    const relation = relations?.resolve(table, path) ?? 'not known';
    if (typeof relation === 'string') return 'all';
    // Through a view that can be written to, whatever it is made of changes.
    const all = relation.kind === 'table' ? relations!.writeSet(relation.oid) : 'all';
    if (all === 'all') return 'all';
    for (const oid of all) found.add(oid);
  }
  return [...found];
}
