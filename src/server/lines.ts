/**
 * The lines of one pool (server/line): which of its servers a short read rides on with those of others. Owned by
 * server/pool, which says whether anybody may ride at the moment.
 *
 * The one idea: a read rides where least is to be done before it. While few servers are at work it gets an idle one instead,
 * unless it would be its turn in a moment anyway: that is cheaper than to wake one more server.
 *
 * Invariants: the server of a line is in use; when a line ends, its server is given back once.
 */
import type { Clock } from '../util/clock.ts';
import type { ServerConnection } from './connection.ts';
import { Line, type Wish } from './line.ts';
import type { Settings } from './settings.ts';

export interface LinesOptions {
  clock: Clock;
  /** Nobody is to board there any more: its server is too old. */
  isOld: (server: ServerConnection) => boolean;
  /** A rider has left. */
  onRoom: (line: Line) => void;
  /** The last rider has left: the server is free, or closed. */
  onEnd: (server: ServerConnection) => void;
}

/** While fewer servers are at work a read gets one of its own, if one is idle: twice the cores of a small database. */
const SPREAD = 4;
/** Unless it would have to wait for less than this anyway: then it rides. */
const NEAR_MS = 1;

export class Lines {
  readonly #options: LinesOptions;
  readonly #lines = new Set<Line>();

  constructor(options: LinesOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#lines.size;
  }

  /** The line with the least to do that a read may board; null: none. */
  best(settings: Settings, wish: Wish): Line | null {
    let best: Line | null = null;
    for (const line of this.#lines) {
      if (best !== null && line.backlogMs >= best.backlogMs) continue;
      if (line.suits(settings, wish) && !this.#options.isOld(line.server)) best = line;
    }
    return best;
  }

  /** With `atWork` servers in use: is an idle one better for a read than the `best` line? */
  isBetterAlone(best: Line | null, atWork: number): boolean {
    return best === null || (atWork < SPREAD && best.backlogMs > NEAR_MS);
  }

  /** Makes a line of a server that is free, and in use from here on. */
  open(server: ServerConnection): Line {
    const { clock, onRoom, onEnd } = this.#options;
    const line = new Line(server, clock, {
      onRoom,
      onEnd: (ended) => {
        this.#lines.delete(ended);
        onEnd(ended.server);
      },
    });
    this.#lines.add(line);
    return line;
  }

  /** Nobody has boarded `line`: it is none. */
  drop(line: Line): void {
    this.#lines.delete(line);
  }

  /** Ends reads that take longer than `queryMax` ms (0: no limit), and tells which limit each of them has exceeded. */
  tick(now: number, queryMax: number, onLimit: (limit: 'query' | 'cancel') => void): void {
    for (const line of this.#lines) {
      const limit = line.tick(now, queryMax);
      if (limit !== null) onLimit(limit);
    }
  }

  [Symbol.iterator](): Iterator<Line> {
    return this.#lines.values();
  }
}
