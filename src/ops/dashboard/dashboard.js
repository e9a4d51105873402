// The dashboard: reads /live and /history.json and shows what they say. No framework, no build step; all text goes through textContent or safe().
import { figure, safe, short } from './draw.js';

/** @typedef {Record<string, any>} Json */

const SILENT_MS = 5_000;
const HISTORY_MS = 5_000;
const COUPLING_MS = 30_000;
const RETRY_MS = 2_000;
const POINTS = 720;
const TOKEN = 'pgweir-token';

const byId = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
/** @type {{ at: number[], series: Record<string, (number | null)[]> }} */
const history = { at: [], series: {} };
let status = /** @type {Json | null} */ (null);
let heardAt = 0;

// --- Asking ------------------------------------------------------------------------------------------------------------

/** @param {string} path */
async function ask(path) {
  const token = sessionStorage.getItem(TOKEN);
  const response = await fetch(path, { headers: token === null ? {} : { authorization: `Bearer ${token}` } });
  if (response.status === 401) {
    await askForToken();
    return ask(path);
  }
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
}

/** @type {Promise<void> | null} */
let asking = null;
function askForToken() {
  asking ??= new Promise((done) => {
    const dialog = /** @type {HTMLDialogElement} */ (byId('login'));
    dialog.addEventListener(
      'close',
      () => {
        const input = /** @type {HTMLInputElement} */ (dialog.querySelector('input'));
        sessionStorage.setItem(TOKEN, input.value);
        asking = null;
        done();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** Server-sent events by fetch, since EventSource can bring no token. */
async function live() {
  const { body } = await ask('/live');
  const reader = /** @type {ReadableStream<Uint8Array>} */ (body).pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split('\n\n');
    text = parts.pop() ?? '';
    const last = parts.at(-1);
    if (last !== undefined) show(JSON.parse(last.slice('data: '.length)));
  }
}

async function readHistory() {
  const fresh = await (await ask(`/history.json?since=${history.at.at(-1) ?? 0}`)).json();
  const before = history.at.length;
  for (const name of new Set([...Object.keys(history.series), ...Object.keys(fresh.series)])) {
    const old = history.series[name] ?? new Array(before).fill(null);
    const more = fresh.series[name] ?? new Array(fresh.at.length).fill(null);
    history.series[name] = [...old, ...more].slice(-POINTS);
  }
  history.at = [...history.at, ...fresh.at].slice(-POINTS);
}

async function forever(/** @type {() => Promise<void>} */ act, /** @type {number} */ pause) {
  for (;;) {
    await act().catch((thrown) => console.warn(thrown));
    await new Promise((done) => setTimeout(done, pause));
  }
}

// --- Showing -----------------------------------------------------------------------------------------------------------

/** @param {Json} now */
function show(now) {
  status = now;
  heardAt = Date.now();
  const { level, line, findings } = now.verdict;
  byId('verdict').dataset.level = level;
  const told = byId('line');
  if (told.textContent !== line) told.textContent = line;
  document.title = `${level} · pgweir`;
  const { clients } = now;
  byId('about').textContent =
    `pgweir ${now.version}, up ${spanOf(now.uptime)}; ${clients.now} of ${clients.max} clients; admission ${now.admission}`;
  showFindings(findings);
  showEvents(now.events);
  showTables(now);
}

/** @param {Json[]} findings */
function showFindings(findings) {
  byId('findings').hidden = findings.length === 0;
  fill(
    byId('findings').querySelector('tbody'),
    findings.map(
      ({ level, what, does, todo }) => `<tr><td class="level">${level}</td>${cells([what, does, todo])}</tr>`,
    ),
  );
}

/** @param {Json[]} events */
function showEvents(events) {
  const items = [...events].reverse().map(({ at, kind, subject, what, actor }) => {
    const by = actor === '' ? '' : ` (${safe(actor)})`;
    return `<li><time datetime="${safe(at)}">${safe(new Date(at).toLocaleTimeString())}</time><b>${safe(kind)}</b> ${safe(subject)} ${safe(what)}${by}</li>`;
  });
  fill(byId('events').querySelector('ol'), items);
}

/** @param {Json} now */
function showTables(now) {
  const rate = (/** @type {number} */ value) => `${short(value)}/s`;
  table('classes', now.classes, {
    class: 'name',
    priority: 'priority',
    host: 'host',
    'at work': 'atWork',
    waiting: 'waiting',
    offered: (row) => rate(row.rates.offered),
    admitted: (row) => rate(row.rates.admitted),
    shed: (row) => rate(row.rates.shed),
    'mean ms': (row) => short(row.meanMs),
    'shed so far': (row) => reasonsOf(row.shed),
  });
  table('ledgers', now.ledgers, {
    reserve: 'ledger',
    host: 'host',
    mode: 'mode',
    zone: 'zone',
    balance: 'balance',
    'lower bound': 'lower',
    reserved: 'reserve',
    capacity: 'capacity',
    'lasts for': (row) => (row.exhaustion_s === null ? 'ever' : spanOf(row.exhaustion_s)),
    'half full in': (row) => (row.recovery_s === null ? 'never' : spanOf(row.recovery_s)),
    'waiting fits': 'fits',
    'beside us /s': 'background',
    'sample age s': 'sample_age_s',
    missing: 'missing',
  });
  table('hosts', now.hosts, {
    host: 'host',
    role: (row) => row.role ?? 'not known',
    connections: (row) => `${row.connections} of ${row.connectionsMax}`,
    'at work': (row) => `${row.atWork} of ${row.limit === null ? 'no limit' : short(row.limit)}`,
    slowdown: (row) => `${row.slowdown.toFixed(2)} ×`,
    hold: 'hold',
    breakers: (row) => row.breakers.join(', ') || 'closed',
    problem: 'problem',
  });
  table('pools', now.pools, {
    database: 'database',
    user: 'user',
    mode: 'mode',
    clients: 'clients',
    waiting: 'waiting',
    active: 'active',
    idle: 'idle',
    connecting: 'connecting',
    pinned: 'pinned',
    failure: 'failure',
  });
  table('bypass', now.bypass, {
    host: 'host',
    application: 'application',
    user: 'user',
    backends: 'backends',
    busy: 'busy',
  });
  table('caches', now.caches, {
    database: 'database',
    mode: 'mode',
    'hears writes by': 'hears',
    'hit ratio': 'hit_ratio',
    hits: 'hits',
    stale: 'stale',
    'stale on error': 'stale_on_error',
    misses: 'misses',
    refused: 'refused',
    'servers spared': 'servers_spared',
    'servers for misses': (row) => `${row.servers_missed} of ${row.servers_max}`,
    backend: 'backend',
    problem: 'problem',
  });
  table('shapes', now.shapes, {
    statement: 'statement',
    'asked for most by': 'service',
    'of all time': (row) => shareOf(row.share),
    'of all work': (row) => shareOf(row.workShare),
    credits: (row) => (row.credits === null ? '' : short(row.credits)),
    times: 'count',
    'mean ms': (row) => short(row.meanMs),
  });
  showSwitches(now.switches);
}

/** @param {Json[]} switches */
function showSwitches(switches) {
  const body = byId('switches').querySelector('table');
  const focused = body?.contains(document.activeElement) ? document.activeElement?.getAttribute('data-switch') : null;
  const head = headOf(['switch', 'class', 'state', 'passes', 'requests', 'work', 'until', 'who and why', '']);
  const rows = switches.map((each) => {
    const what = [each.name, each.class ?? '(match)', wordOf(each.position), wordOf(each.passes)];
    const shares = [shareOf(each.requests), shareOf(each.work)];
    const why = [each.until ?? '', [each.actor, each.reason].filter(Boolean).join(': ')];
    return `<tr>${cells([...what, ...shares, ...why])}<td><button type="button" data-switch="${safe(each.name)}">Set…</button></td></tr>`;
  });
  fill(body, [head, `<tbody>${rows.join('')}</tbody>`]);
  // A button that has the focus keeps it.
  if (focused != null) /** @type {HTMLElement | null} */ (body?.querySelector(`[data-switch="${focused}"]`))?.focus();
}

/** The page of the audit is asked for while somebody looks at it. */
async function showCoupling() {
  const isShown = location.hash === '#coupling';
  byId('now').hidden = isShown;
  byId('coupling').hidden = !isShown;
  for (const link of document.querySelectorAll('nav a'))
    if ((link.getAttribute('href') === '#coupling') === isShown) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  if (!isShown) return;
  const audit = await (await ask('/coupling.json')).json();
  const all = (/** @type {string[]} */ names) => names.join(', ');
  byId('coupling-about').textContent =
    `Since ${new Date(audit.from).toLocaleString()}. A service is an application_name, or a user without one; what a cache answers is not counted.`;
  table('services', audit.services, {
    service: 'service',
    class: 'class',
    'of its host': (row) => shareOf(row.share),
    statements: 'statements',
    'ms of servers': 'ms',
    reads: (row) => all(row.reads),
    writes: (row) => all(row.writes),
  });
  table('couplings', audit.couplings, { table: 'table', database: 'database', writer: 'writer', reader: 'reader' });
  table('shared', audit.shared, {
    table: 'table',
    database: 'database',
    'ms of servers': 'ms',
    writers: (row) => all(row.writers),
    readers: (row) => all(row.readers),
  });
  table('hurt', audit.hurt, {
    service: 'service',
    'who would get only what is set aside for its class': (row) =>
      all(row.hurt.map((/** @type {Json} */ each) => `${each.service} (${shareOf(each.floor)})`)),
  });
}

function drawCurves() {
  const { at, series } = history;
  if (at.length < 2) return;
  const events = (status?.events ?? []).map((/** @type {Json} */ each) => ({
    at: Date.parse(each.at),
    what: `${each.kind} ${each.subject} ${each.what}`,
  }));
  const named = (/** @type {string} */ kind) =>
    Object.keys(series)
      .filter((name) => name.startsWith(`${kind}/`))
      .map((name) => name.slice(kind.length + 1));
  const of = (/** @type {string} */ name) => series[name] ?? [];
  const figures = named('balance').map((name) => {
    const ledger = status?.ledgers.find((/** @type {Json} */ each) => `${each.ledger} of ${each.host}` === name);
    const left = ledger?.exhaustion_s;
    const forecast = typeof left === 'number' ? { until: (at.at(-1) ?? 0) + 1000 * left, value: ledger.reserve } : null;
    return figure({
      title: name,
      unit: '',
      at,
      lines: [{ name: 'balance', values: of(`balance/${name}`) }],
      events,
      forecast,
      floor: ledger?.reserve ?? null,
    });
  });
  for (const host of named('at_work'))
    figures.push(
      figure({
        title: `at work on ${host}`,
        unit: '',
        at,
        lines: [
          { name: 'at work', values: of(`at_work/${host}`) },
          ...(series[`limit/${host}`] === undefined ? [] : [{ name: 'limit', values: of(`limit/${host}`) }]),
        ],
        events,
      }),
    );
  for (const name of named('offered_total'))
    figures.push(
      figure({
        title: `class ${name}`,
        unit: '/s',
        at,
        lines: ['offered', 'admitted', 'shed'].map((what) => ({
          name: what,
          values: rateOf(of(`${what}_total/${name}`), at),
        })),
        events,
      }),
    );
  const hits = of('cache_hits_total/');
  figures.push(
    figure({
      title: 'queries',
      unit: '/s',
      at,
      lines: [
        { name: 'all', values: rateOf(of('queries_total/'), at) },
        ...(hits.length === 0 ? [] : [{ name: 'from the cache', values: rateOf(hits, at) }]),
      ],
      events,
    }),
    figure({
      title: 'clients',
      unit: '',
      at,
      lines: [
        { name: 'connected', values: of('clients/') },
        { name: 'wait for a server', values: of('waiting_for_server/') },
      ],
      events,
    }),
  );
  fill(byId('curves').querySelector('.grid'), figures);
}

/**
 * How fast a counter grows, per second.
 * @param {(number | null)[]} values
 * @param {number[]} at
 */
function rateOf(values, at) {
  return values.map((value, index) => {
    const before = values[index - 1] ?? null;
    const ms = (at[index] ?? 0) - (at[index - 1] ?? 0);
    return value === null || before === null || ms <= 0 ? null : Math.max(0, (1000 * (value - before)) / ms);
  });
}

// --- Markup ------------------------------------------------------------------------------------------------------------

/**
 * @param {string} id
 * @param {Json[] | undefined} rows
 * @param {Record<string, string | ((row: Json) => unknown)>} columns titles, and keys of rows
 */
function table(id, rows = [], columns) {
  const section = byId(id);
  section.hidden = rows.length === 0 && 'optional' in section.dataset;
  const values = rows.map((row) =>
    Object.values(columns).map((key) => (typeof key === 'string' ? row[key] : key(row))),
  );
  fill(section.querySelector('table'), [
    headOf(Object.keys(columns)),
    `<tbody>${values.map((each) => `<tr>${cells(each)}</tr>`).join('')}</tbody>`,
  ]);
}

/** @param {string[]} titles */
function headOf(titles) {
  return `<thead><tr>${titles.map((title) => `<th scope="col">${safe(title)}</th>`).join('')}</tr></thead>`;
}

/** @param {unknown[]} values */
function cells(values) {
  return values
    .map((value) => {
      if (typeof value === 'number') return `<td class="number">${short(value)}</td>`;
      const text = value === null || value === undefined ? '' : String(value);
      return `<td${text.length > 60 ? ' class="text"' : ''}>${safe(text)}</td>`;
    })
    .join('');
}

/**
 * Replaces what is in `element` if it has changed.
 * @param {Element | null | undefined} element
 * @param {string[]} parts
 */
function fill(element, parts) {
  const markup = parts.join('');
  if (element == null || filled.get(element) === markup) return;
  filled.set(element, markup);
  element.innerHTML = markup;
}
/** @type {WeakMap<Element, string>} */
const filled = new WeakMap();

/** @param {Record<string, number>} shed */
function reasonsOf(shed) {
  const told = Object.entries(shed).filter(([, count]) => count > 0);
  return told.map(([reason, count]) => `${reason} ${short(count)}`).join(', ');
}

const shareOf = (/** @type {number} */ share) => `${(100 * share).toFixed(0)} %`;
const wordOf = (/** @type {unknown} */ value) => (typeof value === 'number' ? shareOf(value) : value);

/** @param {number} seconds */
function spanOf(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.round(minutes / 1440)} d`;
}

// --- Switches ----------------------------------------------------------------------------------------------------------

const dialog = /** @type {HTMLDialogElement} */ (byId('set'));
const form = /** @type {HTMLFormElement} */ (dialog.querySelector('form'));
const go = /** @type {HTMLButtonElement} */ (byId('set-go'));
const effect = byId('set-effect');
let name = '';

byId('switches').addEventListener('click', (event) => {
  const button = /** @type {HTMLElement} */ (event.target).closest('button');
  if (button === null) return;
  name = button.dataset.switch ?? '';
  byId('set-name').textContent = name;
  effect.textContent = '';
  go.disabled = true;
  dialog.showModal();
});
// What was said is about what was asked.
form.addEventListener('input', () => {
  go.disabled = true;
  effect.textContent = '';
});
byId('set-try').addEventListener('click', () => {
  if (form.reportValidity()) void send(true);
});
dialog.addEventListener('close', () => {
  if (dialog.returnValue === 'go') void send(false);
});

/** @param {boolean} isDryRun */
async function send(isDryRun) {
  const data = new FormData(form);
  const token = sessionStorage.getItem(TOKEN);
  const user = String(data.get('user'));
  const login = btoa(String.fromCharCode(...new TextEncoder().encode(`${user}:${data.get('password')}`)));
  const duration = String(data.get('for'));
  const response = await fetch(`/switches/${encodeURIComponent(name)}`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      authorization: user === '' && token !== null ? `Bearer ${token}` : `Basic ${login}`,
    },
    body: JSON.stringify({
      state: data.get('state'),
      reason: data.get('reason'),
      dryRun: isDryRun,
      ...(duration === '' ? {} : { for: duration }),
    }),
  });
  if (!response.ok) {
    effect.textContent = `Not done: ${await response.text()}`;
    if (!isDryRun) dialog.showModal();
    return;
  }
  const { touched, warning } = await response.json();
  effect.textContent = `It touches ${shareOf(touched.requests)} of the requests and ${shareOf(touched.work)} of the servers’ time in the last minute. ${warning}`;
  go.disabled = false;
}

// --- Start -------------------------------------------------------------------------------------------------------------

setInterval(() => {
  byId('stale').hidden = heardAt === 0 || Date.now() - heardAt < SILENT_MS;
}, 1_000);
void forever(live, RETRY_MS);
void forever(async () => {
  await readHistory();
  drawCurves();
}, HISTORY_MS);
window.addEventListener('hashchange', () => void showCoupling());
void forever(showCoupling, COUPLING_MS);
