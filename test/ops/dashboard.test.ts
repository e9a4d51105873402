/**
 * The dashboard in a real browser: what it says under load, when a reserve runs out, and when the primary is gone; by mouse, by keyboard, and on a phone.
 *
 * With PGWEIR_PICTURES=docs the screenshots are kept there; else they are only looked at for being there.
 */
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Browser, chromium, type Page } from 'playwright-core';
import t from 'tap';
import { findProgram, skip } from '../fixtures/drivers/programs.ts';
import { fakeMetric } from '../fixtures/metric.ts';
import { open } from '../fixtures/raw.ts';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const program = findProgram('chromium') ?? findProgram('chromium-browser') ?? findProgram('google-chrome');
const pictures = process.env.PGWEIR_PICTURES ?? mkdtempSync(join(tmpdir(), 'pgweir-pictures-'));
mkdirSync(pictures, { recursive: true });

if (program === null) skip(t, 'Chromium', 'chromium');
else await look(program);

async function look(executablePath: string): Promise<void> {
  const postgres = await withPostgres();
  const admin = await connect(postgres.port);
  await admin.query(`CREATE TABLE plans AS SELECT n AS id, 'plan ' || n AS name FROM generate_series(1, 100) n`);
  await admin.end();
  const { state, metric } = await fakeMetric(t);
  const proxy = await startProxy(postgres.port, {
    pool: { waitMax: '1s', connectMax: '500ms' },
    database: { ledgers: ['cpu'], control: { user: 'postgres' }, cache: 'all', hold: { for: '30s' } },
    top: {
      admission: { mode: 'enforce' },
      limit: { mode: 'fixed', max: 4 },
      classes: [
        { name: 'checkout', priority: 'critical', match: [{ application: 'checkout' }] },
        {
          name: 'reports',
          priority: 'batch',
          match: [{ application: 'reports' }],
          queue: { max: 20, waitMax: '200ms' },
        },
      ],
      ledgers: { cpu: { unit: 'cpu-credits', capacity: 576, earnPerHour: 24, vcpus: 2, mode: 'enforce', metric } },
      cache: { mode: 'on', sets: { all: [{ tables: ['plans'], ttl: '1m', consistency: 'proxy' }] } },
    },
  });
  let isOver = false;
  const load = async (application: string, sql: () => string, pause: number) => {
    const client = await open(t, proxy.port, { application_name: application });
    while (!isOver) {
      await client.rows(sql()).catch(() => {});
      await sleep(pause);
    }
  };
  const loads = [
    ...Array.from({ length: 4 }, () =>
      load('checkout', () => `SELECT name FROM plans WHERE id = ${1 + Math.floor(Math.random() * 100)}`, 20),
    ),
    ...Array.from({ length: 2 }, () => load('reports', () => 'SELECT count(*) FROM generate_series(1, 5000)', 100)),
  ];
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] });
  const problems: string[] = [];
  const page = await pageOf(browser, proxy.opsPort, { width: 1280, height: 900 }, 'light', problems);
  const levelOf = (of: Page) => of.locator('#verdict').getAttribute('data-level');
  const take = async (of: Page, name: string) => {
    const path = join(pictures, `dashboard-${name}.png`);
    await of.evaluate('scrollTo(0, 0)');
    await of.screenshot({ path });
    return statSync(path).size;
  };

  await t.test('GREEN: every panel shows live numbers', async (t) => {
    await until(async () => (await page.locator('#curves figure').count()) >= 5, 'curves', 30_000);
    await until(async () => (await levelOf(page)) === 'GREEN', `GREEN: ${await page.locator('#line').textContent()}`);
    t.match(await page.locator('#line').textContent(), /^GREEN: cpu at \d+ %/);
    t.match(await page.title(), 'GREEN · pgweir');
    for (const id of ['classes', 'switches', 'ledgers', 'hosts', 'pools', 'caches', 'shapes']) {
      const rows = page.locator(`#${id} tbody tr`);
      t.ok((await rows.count()) > 0, `${id} has rows`);
      t.match(await rows.first().textContent(), /\d/, `${id} has numbers`);
    }
    t.match(await page.locator('#events').textContent(), /start\s+pgweir/);
    const curve = page.locator('#curves svg').first();
    t.match(
      await curve.getAttribute('aria-label'),
      /^cpu of 127\.0\.0\.1:\d+: balance \d+/,
      'a curve says what it shows',
    );
    t.match(await page.locator('#curves path.of-0').first().getAttribute('d'), /M[\d.]+ [\d.]+L/, 'and is drawn');
    const before = await page.locator('#about').textContent();
    await until(async () => (await page.locator('#about').textContent()) !== before, 'another report');
    t.ok((await take(page, 'green')) > 10_000);
  });

  await t.test('the other page tells who shares what', async (t) => {
    await page.locator('nav a[href="#coupling"]').click();
    await until(async () => (await page.locator('#services tbody tr').count()) > 1, 'services');
    t.match(await page.locator('#services').textContent(), /\d+ %/);
    t.ok(await page.locator('#now').isHidden());
    t.equal(await page.locator('nav a[aria-current]').textContent(), 'Who shares what');
    await page.locator('nav a[href="#now"]').click();
    await page.locator('#now').waitFor({ state: 'visible' });
  });

  await t.test('a switch is set by keyboard: what it touches is said before', async (t) => {
    await page.locator('#switches button[data-switch="reports"]').focus();
    await page.keyboard.press('Enter');
    const dialog = page.locator('#set');
    await dialog.waitFor({ state: 'visible' });
    t.ok(await page.locator('#set-go').isDisabled(), 'not before it was said');
    await dialog.locator('select').selectOption('50%');
    await dialog.locator('input[name=for]').fill('10m');
    await dialog.locator('input[name=reason]').fill('too <b>much</b> at once');
    await dialog.locator('input[name=user]').fill('nobody');
    await page.locator('#set-try').click();
    await until(
      async () => /Not done: .*login/.test((await page.locator('#set-effect').textContent()) ?? ''),
      'a refusal',
    );
    await dialog.locator('input[name=user]').fill('postgres');
    await page.locator('#set-try').focus();
    await page.keyboard.press('Space');
    await until(async () => !(await page.locator('#set-go').isDisabled()), 'what it touches');
    t.match(await page.locator('#set-effect').textContent(), /It touches \d+ % of the requests/);
    await page.locator('#set-go').focus();
    await page.keyboard.press('Enter');
    await dialog.waitFor({ state: 'hidden' });
    await until(async () => (await page.locator('#switches').textContent())!.includes('postgres: too'), 'the switch');
    t.match(await page.locator('#switches').textContent(), 'postgres: too <b>much</b> at once', 'text is text');
    await until(
      async () => (await page.locator('#events').textContent())!.includes('switch reports on → 50%'),
      'the event',
    );
    // Something worse may be told first for a moment, as a busy machine's lag.
    await until(
      async () =>
        /^AMBER: reports is switched to 50 % by postgres/.test((await page.locator('#line').textContent()) ?? ''),
      'the verdict',
    );
    await fetch(`http://127.0.0.1:${proxy.opsPort}/switches/reports`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Basic ${btoa('postgres:')}` },
      body: '{"state":"default"}',
    });
  });

  await t.test('AMBER and RED, as the reserve goes', async (t) => {
    // It is a jump, which is believed when it is told again.
    const fallTo = async (balance: number, level: string) => {
      state.balance = balance;
      await until(
        async () => (await page.locator('#line').textContent())!.startsWith(`${level}: cpu of`),
        `${level} at ${balance}`,
        60_000,
      );
    };
    await page.evaluate('scrollTo(0, 0)');
    await fallTo(250, 'AMBER');
    t.match(await page.locator('#line').textContent(), /^AMBER: /);
    t.match(await page.locator('#findings').textContent(), /switch off what can wait/);
    t.ok((await take(page, 'amber')) > 10_000);
    await fallTo(100, 'RED');
    t.match(await page.locator('#events').textContent(), /zone\s+cpu of/);
    t.ok((await take(page, 'red')) > 10_000);
  });

  await t.test('on a phone, in the dark, nothing sticks out', async (t) => {
    const phone = await pageOf(browser, proxy.opsPort, { width: 390, height: 844 }, 'dark', problems);
    await until(async () => (await phone.locator('#classes tbody tr').count()) > 0, 'rows');
    t.equal(await phone.evaluate('document.documentElement.scrollWidth'), 390);
    const colour = await phone.evaluate('getComputedStyle(document.body).backgroundColor');
    t.equal(colour, 'rgb(15, 21, 25)');
    t.ok((await take(phone, 'phone')) > 10_000);
    await phone.close();
  });

  await t.test('the primary is gone: RED, and what is being done about it', async (t) => {
    state.balance = 500;
    await postgres.stop('immediate');
    await until(
      async () => /no primary behind .* requests are held/.test((await page.locator('#line').textContent()) ?? ''),
      'the hold',
      30_000,
    );
    t.equal(await levelOf(page), 'RED');
    await until(async () => (await page.locator('#events').textContent())!.includes('open → holding'), 'the event');
    t.ok((await take(page, 'failover')) > 10_000);
  });

  t.same(problems, [], 'no error in the page, nothing loaded from elsewhere');
  isOver = true;
  await browser.close();
  await proxy.stop();
  await Promise.allSettled(loads);
  t.equal(proxy.bugs(), 0);
  if (process.env.PGWEIR_PICTURES === undefined) rmSync(pictures, { recursive: true });
}

async function pageOf(
  browser: Browser,
  port: number,
  viewport: { width: number; height: number },
  colorScheme: 'light' | 'dark',
  problems: string[],
): Promise<Page> {
  const page = await browser.newPage({ viewport, colorScheme });
  const home = `http://127.0.0.1:${port}/`;
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => {
    // A refusal of the server is an answer (401), which the browser tells as an error.
    if (message.type() === 'error' && !message.text().includes('401')) problems.push(message.text());
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(home) && !request.url().startsWith('data:')) problems.push(request.url());
  });
  await page.goto(home);
  return page;
}
