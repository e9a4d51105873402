/**
 * Messages of the protocol that do what a text would do, as verdicts. Called by client/request.
 */
import { pinning, probing } from '../sql/effects.ts';
import { harmless, type Verdict } from '../sql/verdict.ts';

/** Parse of a name that SQL-level PREPARE may have given. */
export const likePrepare: Verdict = { ...harmless, effects: { ...probing, isPreparing: true } };
/** Execute of a statement that SQL-level PREPARE may have made. */
export const likeExecute: Verdict = {
  ...harmless,
  effects: { ...pinning(), references: [{ command: 'execute', name: '', start: 0, end: 0 }] },
};
/** Close of such a statement. */
export const likeDeallocate: Verdict = { ...harmless, effects: { ...pinning(), isUndoing: true } };

/** What a function does that is called by its oid is not known. */
const unknownFunction: Verdict = { ...harmless, effects: pinning('function') };
/** Server-side functions of large objects, which drivers call by FunctionCall: no effect beyond the transaction. */
const largeObjectFunctions = new Set([
  715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458, 3459, 3460,
]);

/** FunctionCall of the function with this oid; null: nothing is to be said of it. */
export function likeCall(oid: number): Verdict | null {
  return largeObjectFunctions.has(oid) ? null : unknownFunction;
}
