/** Hosts, their roles, and the circuit breakers before them, as people and their tools see them. */
import type { HealthState } from '../guard/health.ts';
import type { Snapshot } from './snapshot.ts';

type Row = (string | number | null)[];

export interface BreakerView {
  host: string;
  /** connect: no connection can be opened; health: answers say that the host cannot. */
  breaker: 'connect' | 'health';
  state: HealthState;
  opened: number;
  /** In the window of a health breaker. */
  requests: number | null;
  failures: number | null;
  /** What passes, from 0 to 1. */
  share: number;
  why: string;
}

export const breakerStates: readonly HealthState[] = ['closed', 'half-open', 'open'];

export function breakersOf({ hosts, breakers }: Snapshot): BreakerView[] {
  return hosts.flatMap(({ address: host, connector }): BreakerView[] => {
    const { state, opened, why } = connector;
    const connect = { state, opened, why, requests: null, failures: null, share: state === 'open' ? 0 : 1 };
    const health = breakers.get(host);
    return [
      { host, breaker: 'connect', ...connect },
      ...(health === undefined
        ? []
        : [
            {
              host,
              breaker: 'health' as const,
              state: health.state,
              opened: health.opened,
              requests: health.requests,
              failures: health.failures,
              share: health.share,
              why: health.why,
            },
          ]),
    ];
  });
}

export const BREAKER_COLUMNS = 'host, breaker, state, passes, opened n, requests n, failures n, why';

export function breakerRows(snapshot: Snapshot): Row[] {
  return breakersOf(snapshot).map(({ host, breaker, state, share, opened, requests, failures, why }) => [
    host,
    breaker,
    state,
    `${Math.round(100 * share)}%`,
    opened,
    requests,
    failures,
    why,
  ]);
}

export const HOST_COLUMNS = `host, role, why, timeline i, lag_ms n, connections i, connections_max i, connecting i, hold, held i,
  outage_ms n, moves i`;

/** One row for each host of each set of hosts. Without a control user its role is not known. */
export function hostRows({ clusters, hosts, now }: Snapshot): Row[] {
  return clusters.flatMap((cluster) =>
    [...cluster.roles].map(([address, { role, why, finding }]) => {
      const host = hosts.find((each) => each.address === address);
      return [
        address,
        role,
        why,
        finding === null || finding.isInRecovery ? null : finding.timeline,
        finding?.lagMs == null ? null : Math.round(finding.lagMs),
        host?.count ?? 0,
        host?.serversMax ?? 0,
        host?.connector.running ?? 0,
        cluster.hold.state,
        cluster.hold.isClosed ? cluster.held : 0,
        Math.round(cluster.hold.outageMs(now)),
        cluster.moves,
      ];
    }),
  );
}
