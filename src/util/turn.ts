/**
 * The end of a turn of the event loop: what several events of one turn have to say to one socket leaves in one system
 * call there. Called by server/line.
 *
 * A turn ends when everything that had arrived has been read, so a lone request is not held up for others.
 */

let ending: (() => void)[] = [];

/** Calls `run` once, when what has arrived by now has been handled. It must not throw. */
export function atEndOfTurn(run: () => void): void {
  if (ending.length === 0) setImmediate(endTurn);
  ending.push(run);
}

function endTurn(): void {
  const runs = ending;
  ending = [];
  for (const run of runs) run();
}
