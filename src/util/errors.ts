/**
 * Two kinds of trouble. A bug breaks an `assert`: it ends the session in which it shows, never the process. Everything
 * else is an answer, a value of type Refusal (protocol/sqlstate), and travels as a value.
 */

class InvariantError extends Error {
  override name = 'InvariantError';
}

/** Throws when `condition` does not hold; `invariant` says, as a sentence, what must always be true. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new InvariantError(invariant);
}

/** The text of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
