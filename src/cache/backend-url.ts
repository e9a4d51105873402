/**
 * Where a cache backend is, and the client that is made for it. Called by cache/backend.
 *
 *     redis://host:6379/0      rediss:// (TLS)      redis+cluster://a:6379,b:6379      redis+sentinel://a:26379,b:26379/name
 *
 * The one idea: a client of a cache must not be helpful. The defaults of ioredis keep commands while there is no connection and send them again
 * when there is one: seconds later, when nobody wants them, and the database has been asked long since (cache.md §3.2, measured).
 */
import { Cluster, Redis, type RedisOptions } from 'ioredis';

export interface Place {
  kind: 'one' | 'cluster' | 'sentinel';
  isTls: boolean;
  hosts: { host: string; port: number }[];
  /** Of 'one': the database's number; of 'sentinel': the primary's name. */
  name: string;
  user: string;
  password: string;
}

const URL =
  /^(redis|rediss|redis\+cluster|rediss\+cluster|redis\+sentinel|rediss\+sentinel):\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^/]+)(?:\/(.*))?$/;
const PORTS = { one: 6379, cluster: 6379, sentinel: 26_379 } as const;

/** Reads the URL; throws with what is wrong with it. */
export function placeOf(url: string): Place {
  const [, scheme, user = '', password = '', hosts, name = ''] = URL.exec(url) ?? [];
  if (scheme === undefined)
    throw new Error('expected redis://host:port, rediss://, redis+cluster://a,b or redis+sentinel://a,b/name');
  const kind = scheme.endsWith('+cluster') ? 'cluster' : scheme.endsWith('+sentinel') ? 'sentinel' : 'one';
  if (kind === 'sentinel' && name === '')
    throw new Error('redis+sentinel:// needs the name of the primary behind the hosts');
  return {
    kind,
    isTls: scheme.startsWith('rediss'),
    hosts: hosts!.split(',').map((each) => {
      const [, host, port] = /^(\[[^\]]+\]|[^:]+)(?::(\d+))?$/.exec(each) ?? [];
      if (host === undefined) throw new Error(`"${each}" is no host`);
      return { host: host.replace(/^\[|\]$/g, ''), port: Number(port ?? PORTS[kind]) };
    }),
    name,
    user: decodeURIComponent(user),
    password: decodeURIComponent(password),
  };
}

/** What a client must not do (asserted by tests against a closed port: names that ioredis does not know it ignores silently). */
export function bareOptions(budgetMs: number): RedisOptions {
  return {
    lazyConnect: true,
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    autoResubscribe: false,
    commandTimeout: budgetMs,
    connectTimeout: 500,
    noDelay: true,
    enableAutoPipelining: false,
    // When it is asked again is decided by cache/arming.
    retryStrategy: () => null,
  };
}

export function connectOptions(
  place: Place,
  { budget, password }: { budget: number; password: string | undefined },
): Redis | Cluster {
  const options: RedisOptions = {
    ...bareOptions(budget),
    ...(place.user === '' ? {} : { username: place.user }),
    ...((password ?? place.password) === '' ? {} : { password: password ?? place.password }),
    ...(place.isTls ? { tls: {} } : {}),
  };
  switch (place.kind) {
    case 'one':
      return new Redis({ ...options, ...place.hosts[0]!, db: Number(place.name || 0) });
    case 'sentinel':
      return new Redis({
        ...options,
        sentinels: place.hosts,
        name: place.name,
        sentinelRetryStrategy: () => null,
        enableTLSForSentinelMode: place.isTls,
      });
    case 'cluster':
      return new Cluster(place.hosts, {
        lazyConnect: true,
        enableOfflineQueue: false,
        clusterRetryStrategy: () => null,
        redisOptions: options,
        slotsRefreshTimeout: 500,
      });
    default:
      return place.kind satisfies never;
  }
}
