/**
 * The end of a turn of the event loop, when everything that had arrived has been handled. Called by util/outbox.
 */

/** Has something to do at the end of the turn. It must not throw. */
export interface Turning {
  endTurn(): void;
}

let ending: Turning[] = [];

/** Calls `member.endTurn()` once, at the end of this turn. */
export function atEndOfTurn(member: Turning): void {
  if (ending.length === 0) setImmediate(endTurn);
  ending.push(member);
}

function endTurn(): void {
  const members = ending;
  ending = [];
  for (const member of members) member.endTurn();
}
