/**
 * Who works on the database past this proxy: backends in pg_stat_activity that are not ours, by application. Made by app, which asks for a look every
 * quarter of a minute; shown by SHOW BYPASS, the status and the metrics.
 *
 * The one idea: what bypasses the proxy is neither limited nor metered, and burns the same reserve; somebody should know its name.
 *
 * Limits: it needs a control user, who sees states of others' backends only with pg_read_all_stats; servers of other instances of pgweir
 * carry their clients' names, and look like theirs (`instances`).
 */
import { messageOf } from '../util/errors.ts';
import type { Metric } from './metrics.ts';

export interface Stranger {
  host: string;
  application: string;
  user: string;
  backends: number;
  /** Of them, with a statement or a transaction under way. */
  busy: number;
}

/** A host with a control user: one question, and the process ids of the servers that are ours there. */
export interface Watched {
  host: string;
  query(sql: string): Promise<(string | null)[][]>;
  pids: readonly number[];
}

const SHOWN = 20;

export class Bypass {
  strangers: readonly Stranger[] = [];
  /** Why the last look failed; ''. */
  problem = '';
  #isLooking = false;

  /** Looks at each host once; a look that has not ended is not begun again. */
  async look(hosts: readonly Watched[]): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    const found: Stranger[] = [];
    this.problem = '';
    for (const { host, query, pids } of hosts) {
      try {
        for (const [application, user, backends, busy] of await query(questionOf(pids)))
          found.push({
            host,
            application: application!,
            user: user ?? '',
            backends: Number(backends),
            busy: Number(busy),
          });
      } catch (thrown) {
        this.problem = `${host}: ${messageOf(thrown)}`;
      }
    }
    this.strangers = found;
    this.#isLooking = false;
  }
}

function questionOf(pids: readonly number[]): string {
  return `SELECT coalesce(nullif(application_name, ''), '(no name)'), usename, count(*)::text,
      (count(*) FILTER (WHERE state IS DISTINCT FROM 'idle'))::text
    FROM pg_catalog.pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> 'pgweir control' AND pid <> pg_catalog.pg_backend_pid()
      AND NOT pid = ANY ('{${pids.join()}}'::int[])
    GROUP BY 1, 2 ORDER BY 4 DESC, 3 DESC LIMIT ${SHOWN}`;
}

export const BYPASS_COLUMNS = 'host, application, user, backends n, busy n';

export function bypassRows({ strangers }: Bypass): (string | number)[][] {
  return strangers.map(({ host, application, user, backends, busy }) => [host, application, user, backends, busy]);
}

/** Sums only: names of applications are without bound. */
export const bypassMetrics: readonly Metric[] = [
  {
    name: 'pgweir_bypass_backends',
    help: 'Backends of the database that are not ours, as far as the control user sees them: all, and those that are busy. Absent without a control user.',
    type: 'gauge',
    labels: ['host', 'what'],
    read({ bypass: { strangers } }) {
      const hosts = new Map<string, { all: number; busy: number }>();
      for (const { host, backends, busy } of strangers) {
        const sum = hosts.get(host) ?? { all: 0, busy: 0 };
        hosts.set(host, { all: sum.all + backends, busy: sum.busy + busy });
      }
      return [...hosts].flatMap(([host, { all, busy }]) => [
        [{ host, what: 'all' }, all] as const,
        [{ host, what: 'busy' }, busy] as const,
      ]);
    },
  },
];
