/**
 * Time as a parameter. Everything that measures or waits takes a Clock, so that tests can move time by hand
 * (the fake lives in test/fixtures). Called by every module with a limit in time.
 *
 * Invariant: the data path never starts a timer of its own; periodic work happens in the ticks that `app` starts.
 */

export interface Clock {
  /** Milliseconds since an arbitrary origin; never goes back. */
  now(): number;
  /** Milliseconds since the Unix epoch, for people and protocols. */
  wall(): number;
  /** Calls `run` once after `ms` milliseconds; the returned function cancels it. Does not keep the process alive. */
  after(ms: number, run: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  after(ms, run) {
    const timer = setTimeout(run, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};

/** Calls `run` every `ms` milliseconds until the returned function is called. */
export function every(clock: Clock, ms: number, run: () => void): () => void {
  let cancel = clock.after(ms, tick);
  function tick() {
    cancel = clock.after(ms, tick);
    run();
  }
  return () => cancel();
}
