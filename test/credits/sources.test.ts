/**
 * credits/sources, credits/poller: what they ask and what they make of the answers. The other sides are fakes on loopback
 * that speak the real wire formats: Prometheus' HTTP API, and CloudWatch as the real SDK asks it (JSON 1.0).
 */
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { Poller } from '../../src/credits/poller.ts';
import { CloudWatch } from '../../src/credits/sources/cloudwatch.ts';
import { HttpSource } from '../../src/credits/sources/http.ts';
import { PrometheusSource } from '../../src/credits/sources/prometheus.ts';
import type { Reading, Source } from '../../src/credits/sources/source.ts';
import { SqlSource } from '../../src/credits/sources/sql.ts';
import { until } from '../fixtures/stack.ts';

type Answer = { status?: number; body: unknown };

/** A server that answers with what `answer` says. */
async function fake(t: Test, answer: (url: URL, body: string) => Answer | null): Promise<string> {
  const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk));
    request.on('end', () => {
      const found = answer(new URL(request.url!, 'http://fake'), body);
      if (found === null) return; // It hangs.
      response.writeHead(found.status ?? 200, { 'content-type': 'application/json' });
      response.end(typeof found.body === 'string' ? found.body : JSON.stringify(found.body));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const signal = () => AbortSignal.timeout(2000);
const vector = (...values: [number, string][]) => ({
  status: 'success',
  data: { resultType: 'vector', result: values.map((value) => ({ metric: {}, value })) },
});

t.test('Prometheus: the value, and the time when it was taken', async (t) => {
  const queries: string[] = [];
  const url = await fake(t, ({ pathname, searchParams }) => {
    const query = searchParams.get('query')!;
    queries.push(`${pathname} ${query}`);
    return { body: query.startsWith('timestamp(') ? vector([1000, '940']) : vector([1000, '123.5']) };
  });
  const query = 'aws_rds_cpucredit_balance_average{dbinstance_identifier="db-1"}';
  t.same(await new PrometheusSource(`${url}/`, query).read(signal()), [{ value: 123.5, observedAt: 940_000 }]);
  t.same(queries.sort(), [`/api/v1/query ${query}`, `/api/v1/query timestamp(${query})`].sort());
});

t.test('Prometheus: no series, NaN and a scalar; several series, errors and nonsense', async (t) => {
  let body: unknown = vector();
  let status = 200;
  const source = new PrometheusSource(await fake(t, () => ({ status, body })), 'q');
  t.same(await source.read(signal()), []);
  body = vector([1000, 'NaN']);
  t.same(await source.read(signal()), []);
  body = { status: 'success', data: { resultType: 'scalar', result: [1000, '7'] } };
  t.match(await source.read(signal()), [{ value: 7 }]);
  body = vector([1, '1'], [1, '2']);
  await t.rejects(source.read(signal()), /gives 2 series, not one/);
  body = { status: 'error', error: 'parse error' };
  await t.rejects(source.read(signal()), /Prometheus says: parse error/);
  body = '<html>';
  await t.rejects(source.read(signal()), /has not answered with JSON/);
  status = 503;
  await t.rejects(source.read(signal()), /has answered 503/);
});

t.test('JSON over HTTP, by pointer', async (t) => {
  let body: unknown = { a: { 'b/c': ['', { balance: '42.5' }] }, at: '2026-11-24T10:00:00Z' };
  const url = await fake(t, () => ({ body }));
  const source = new HttpSource(url, '/a/b~1c/1/balance', '/at', () => 5);
  t.same(await source.read(signal()), [{ value: 42.5, observedAt: Date.UTC(2026, 10, 24, 10) }]);
  body = { value: 1, at: 1_700_000_000 };
  t.match(await new HttpSource(url, '/value', '/at', () => 5).read(signal()), [{ observedAt: 1_700_000_000_000 }]);
  t.match(await new HttpSource(url, '/value', null, () => 5).read(signal()), [{ value: 1, observedAt: 5 }]);
  await t.rejects(
    new HttpSource(url, '/none', null, () => 5).read(signal()),
    /what is at \/none is undefined, and no number/,
  );
  body = { value: 'much', at: 'never' };
  await t.rejects(new HttpSource(url, '/value', null, () => 5).read(signal()), /no number/);
  body = { value: 1, at: 'never' };
  await t.rejects(new HttpSource(url, '/value', '/at', () => 5).read(signal()), /no time/);
});

t.test('SQL: rows of value and time', async (t) => {
  const rows = [
    ['3', '2026-11-24 10:05:00+00'],
    ['2', '2026-11-24 10:00:00+00'],
    [null, null],
  ];
  const readings = await new SqlSource(
    async () => rows,
    () => 5,
  ).read();
  t.same(
    readings.map(({ value }) => value),
    [2, 3],
    'oldest first',
  );
  t.same(
    await new SqlSource(
      async () => [['9']],
      () => 5,
    ).read(),
    [{ value: 9, observedAt: 5 }],
  );
});

t.test('CloudWatch by the real SDK: one call for a region, pages, partial data, late points', async (t) => {
  const minute = 60_000;
  const now = Date.UTC(2026, 10, 24, 10, 2);
  const calls: {
    MetricDataQueries: { Id: string; MetricStat: { Period: number; Metric: { MetricName: string } } }[];
    NextToken?: string;
    ScanBy: string;
  }[] = [];
  let isBroken = false;
  process.env.AWS_ENDPOINT_URL_CLOUDWATCH = await fake(t, (_, body) => {
    if (isBroken) return { status: 400, body: { __type: 'AccessDenied', message: 'no' } };
    const call = JSON.parse(body) as (typeof calls)[number];
    calls.push(call);
    const at = (minutes: number) => (now - minutes * minute) / 1000;
    const first = call.NextToken === undefined;
    return {
      body: {
        MetricDataResults: [
          first
            ? { Id: 'm0', StatusCode: 'PartialData', Timestamps: [at(17), at(12)], Values: [101, 100] }
            : { Id: 'm0', StatusCode: 'Complete', Timestamps: [at(7), at(2)], Values: [99, 98] },
          { Id: 'm1', StatusCode: 'Complete', Timestamps: [at(7)], Values: [40] },
        ],
        ...(first ? { NextToken: 'more' } : {}),
      },
    };
  });
  process.env.AWS_ACCESS_KEY_ID = 'test';
  process.env.AWS_SECRET_ACCESS_KEY = 'test';
  const region = new CloudWatch('eu-west-1', () => now);
  const metric = (name: string) => ({
    namespace: 'AWS/RDS',
    name,
    dimensions: { DBInstanceIdentifier: 'db-1' },
    period: 5 * minute,
  });
  const [balance, load] = [region.source(metric('CPUCreditBalance')), region.source(metric('CPUUtilization'))];
  const [a, b] = await Promise.all([balance.read(signal()), load.read(signal())]);
  t.same(
    a!.map(({ value }) => value),
    [101, 100, 99],
    'the last point is of a period that is not over',
  );
  t.equal(a!.at(-1)!.observedAt, now - 2 * minute, 'its time is the end of its period');
  t.match(b, [{ value: 40 }]);
  t.equal(calls.length, 2, 'two pages, not two calls for each');
  t.match(calls[0], { ScanBy: 'TimestampAscending' });
  t.same(
    calls[0]!.MetricDataQueries.map(({ MetricStat: { Metric, Period } }) => [Metric.MetricName, Period]),
    [
      ['CPUCreditBalance', 300],
      ['CPUUtilization', 300],
    ],
  );
  isBroken = true;
  await t.rejects(new CloudWatch('eu-west-1', () => now).source(metric('x')).read(signal()), { name: /AccessDenied/ });
});

t.test('when the clock is set back, what is read from then on is new', async (t) => {
  let wall = 10_000_000;
  const poller = new Poller(
    () => wall,
    (_, problem) => t.fail(problem),
  );
  t.after(() => poller.close());
  const readings: number[] = [];
  poller.add('steady', { read: async () => [{ value: wall, observedAt: wall }] }, 1000, ({ value }) =>
    readings.push(value),
  );
  const times = [wall, wall - 3_600_000, wall - 3_599_000];
  for (const [index, time] of times.entries()) {
    wall = time;
    poller.tick(1000 * index);
    await until(() => readings.length > index, `what is read at ${time}`);
  }
  t.same(readings, times);
});

t.test('a source that hangs, fails or repeats itself costs nobody anything, and is left alone', async (t) => {
  const problems: string[] = [];
  const poller = new Poller(
    () => 1_000_000,
    (name, problem) => problems.push(`${name}: ${problem}`),
  );
  t.after(() => poller.close());
  const readings: number[] = [];
  let asked = 0;
  let mode: 'good' | 'bad' = 'good';
  const moody: Source = {
    async read(): Promise<Reading[]> {
      asked++;
      if (mode === 'bad') throw new Error('gone');
      return [
        { value: 1, observedAt: 1 },
        { value: 2, observedAt: 2 },
      ];
    },
  };
  poller.add('moody', moody, 1000, ({ value }) => readings.push(value));
  poller.add('hanging', { read: () => new Promise(() => {}) }, 1000, () => t.fail());
  let now = 0;
  const tick = async () => {
    now += 1000;
    poller.tick(now);
    await sleep(1);
  };
  await tick();
  await tick();
  t.same(readings, [1, 2], 'each is handed on once');
  mode = 'bad';
  for (let n = 0; n < 20; n++) await tick();
  t.ok(asked < 22, `asked ${asked} times of 22`);
  const counts = poller.counts.get('moody')!;
  t.ok(counts.isOpen && counts.failures >= 19, JSON.stringify(counts));
  t.equal(problems[0], 'moody: gone');
  t.equal(poller.counts.get('hanging')!.reads, 1, 'never twice at a time');
});
