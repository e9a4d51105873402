/**
 * How a reserve is doing, in one word for people, alarms and switches. Used by credits/host.
 *
 *     GREEN ──▶ AMBER ──▶ RED ──▶ BLACK      at once;   back only after a while, and with something to spare
 *
 * Zones hold nothing back: that is the budget's affair (credits/glide), which is continuous. A zone that held deferrable work
 * back would leave what is above the reserve unused.
 */
export const zones = ['GREEN', 'AMBER', 'RED', 'BLACK'] as const;
export type Zone = (typeof zones)[number];

export interface Reserve {
  /** The lower bound of the balance, as a share of the capacity; and the reserve. */
  lower: number;
  reserve: number;
  /** Seconds until the reserve is reached. */
  exhaustion: number;
}

const HOUR_S = 3600;
const DWELL_MS = 10 * 60_000;
/** What it must have beyond a threshold to go back across it. */
const ROOM = 0.1;

/** What it would be without a past; `room`: how much more than the thresholds is asked for. */
function zoneOf({ lower, reserve, exhaustion }: Reserve, room: number): Zone {
  if (lower <= reserve + room / 5) return 'BLACK';
  if (lower < 0.2 + room || exhaustion < HOUR_S / 2) return 'RED';
  if (lower < 0.5 + room || exhaustion < 2 * HOUR_S) return 'AMBER';
  return 'GREEN';
}

export class ZoneKeeper {
  zone: Zone = 'GREEN';
  #since = Number.NEGATIVE_INFINITY;

  tick(now: number, reserve: Reserve): Zone {
    const worst = (a: Zone, b: Zone) => (zones.indexOf(a) >= zones.indexOf(b) ? a : b);
    const down = worst(this.zone, zoneOf(reserve, 0));
    const next = down === this.zone && now - this.#since >= DWELL_MS ? zoneOf(reserve, ROOM) : down;
    if (next !== this.zone) this.#since = now;
    this.zone = next;
    return next;
  }
}
