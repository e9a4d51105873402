/**
 * A load from drivers that have many queries under way at once, in a process of its own: `pipeline.ts DRIVER PORT
 * SECONDS` prints how many queries a second were answered. Started by bench/scenarios.
 */
import pg from 'pg';
import postgres from 'postgres';

const CONNECTIONS = 4;
const UNDER_WAY = 64;

const [driver, port, seconds] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const where = { host: '127.0.0.1', port, database: 'postgres', max: CONNECTIONS };
const text = 'SELECT abalance FROM pgbench_accounts WHERE aid = $1';

function makeQuery(): { query: (aid: number) => Promise<unknown>; end: () => Promise<void> } {
  if (driver === 'postgres.js') {
    const sql = postgres({ ...where, username: 'postgres' });
    return { query: (aid) => sql`SELECT abalance FROM pgbench_accounts WHERE aid = ${aid}`, end: () => sql.end() };
  }
  const pool = new pg.Pool({ ...where, user: 'postgres' });
  return { query: (aid) => pool.query({ name: 'balance', text, values: [aid] }), end: () => pool.end() };
}

const { query, end } = makeQuery();
await query(1);
let answered = 0;
const before = performance.now();
const until = before + seconds * 1000;
await Promise.all(
  Array.from({ length: UNDER_WAY }, async (_, worker) => {
    for (let aid = worker + 1; performance.now() < until; aid = (aid + 97) % 900_000) {
      await query(aid + 1);
      answered++;
    }
  }),
);
console.log(answered / ((performance.now() - before) / 1000));
await end();
