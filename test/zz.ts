import { describe, RawClient, send, types } from './fixtures/raw.ts';
import { startProxy, withPostgres } from './fixtures/stack.ts';

const postgres = await withPostgres();
const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
const a = await RawClient.open(proxy.port);
const { parse: P, bind: B, execute: E, sync: S, query: Q } = send;
const run = async (...p: Buffer[]) => {
  const m = await a.ask(p);
  console.log(
    types(m),
    m
      .filter((x) => x.type === 'E')
      .map(describe)
      .join(),
  );
};
await run(P('x', 'SELECT 1'), P('y', 'SELECT 2'), S());
await run(Q('DEALLOCATE x'));
await run(B('', 'y'), E(''), S());
await run(P('', 'DEALLOCATE PREPARE y'), B('', ''), E(''), S());
await run(B('', 'y'), E(''), S());
await run(Q('DEALLOCATE y'));
a.end();
console.log(
  'bugs',
  proxy.bugs(),
  proxy.log
    .filter((l) => l.includes('bug'))
    .join('')
    .slice(0, 3000),
);
await proxy.stop();
await postgres.stop();
