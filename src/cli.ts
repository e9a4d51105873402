#!/usr/bin/env -S node --max-semi-space-size=8
/** The command line: commands and flags, no logic. Everything that runs is app (or config, for check and schema). */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { isIPv6 } from 'node:net';
import { dirname, resolve } from 'node:path';
import { Command } from 'commander';
import { App } from './app.ts';
import { readHba } from './client/hba.ts';
import { Users } from './client/users.ts';
import { adviceFor } from './config/advice.ts';
import { importPgbouncer } from './config/import.ts';
import { type Loaded, loadConfig, parseConfig } from './config/load.ts';
import { jsonSchema } from './config/schema.ts';
import { inheritedSockets, predecessor, startSuccessor } from './fleet/handover.ts';
import { completionOf } from './ops/completion.ts';
import { couplingDot, couplingMarkdown, couplingText } from './ops/coupling.ts';
import { explanationOf } from './ops/journal.ts';
import { makeLogger } from './ops/log.ts';
import { Remote, statusText, switchTable } from './ops/remote.ts';
import { durationOf, effectOf } from './ops/switchboard.ts';
import { runTop } from './ops/top.ts';
import { version } from './ops/version.ts';
import { messageOf } from './util/errors.ts';

const USAGE = 2;

interface ServeFlags {
  config?: string;
  embedded?: boolean;
  data?: string;
  port: string;
  opsPort: string;
  pace: string;
}

const program = new Command('pgweir')
  .description('A proxy that speaks the Postgres wire protocol, stands in front of a database and keeps it alive.')
  .version(version)
  .showHelpAfterError()
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : USAGE));

program
  .command('serve', { isDefault: true })
  .description('serve clients')
  .option('-c, --config <file>', 'the configuration')
  .option('--embedded', 'stand in front of an embedded, throw-away Postgres')
  .option('--data <dir>', 'with --embedded: keep the data here')
  .option('--port <number>', 'with --embedded: the port to listen on', '6432')
  .option('--ops-port <number>', 'with --embedded: the HTTP port', '9432')
  .option('--pace <number>', 'rehearse: the time of ledgers runs so many times faster', '1')
  .action(async (options: ServeFlags) => {
    const pace = Number(options.pace);
    if (!(pace >= 1)) program.error('pgweir: --pace wants a number of at least 1');
    if (options.embedded) await serveEmbedded(options.data ?? null, Number(options.port), Number(options.opsPort));
    else if (options.config !== undefined) await serve(options.config, pace);
    else {
      console.error(
        'pgweir: no configuration.\n' +
          '  pgweir serve --config pgweir.yaml    serves what the file says (see config.example.yaml)\n' +
          '  pgweir serve --embedded              serves an empty, throw-away Postgres, to try things out',
      );
      process.exit(USAGE);
    }
  });

program
  .command('check')
  .description('check a configuration: file:line:col: path: message')
  .argument('<file>')
  .option('--json', 'print problems as JSON')
  .action((file: string, { json }: { json?: boolean }) => {
    const { problems, advice } = checkFile(file);
    const ok = problems.length === 0;
    if (json) console.log(JSON.stringify({ ok, problems, advice }));
    else console.log([...(ok ? [`${file}: ok`] : problems), ...advice.map((each) => `  note: ${each}`)].join('\n'));
    process.exit(ok ? 0 : 1);
  });

program
  .command('schema')
  .description('print the JSON Schema of the configuration')
  .action(() => console.log(JSON.stringify(jsonSchema(), null, 2)));

program
  .command('import')
  .description('make a configuration from a pgbouncer.ini, and list what has no counterpart')
  .argument('<file>', 'the pgbouncer.ini')
  .option('-o, --out <file>', 'write it here, and passwords into files beside it; otherwise it is printed')
  .action((file: string, { out }: { out?: string }) => importFile(resolve(file), out));

/** A command that asks a running pgweir. */
function remote(command: Command): Command {
  return command
    .option('-c, --config <file>', 'its configuration: for the address and the token')
    .option('--url <url>', 'its HTTP port, if not as in the configuration', undefined)
    .option('--token-file <file>', 'a file with its token (ops.tokenFile)')
    .option('--user <name>', 'without a token: one of auth.admins; the password is in PGPASSWORD', 'postgres')
    .option('--json', 'print JSON');
}

interface RemoteFlags {
  config?: string;
  url?: string;
  tokenFile?: string;
  user: string;
  json?: boolean;
}

remote(program.command('status').description('print how a running pgweir is doing'))
  .option('--quiet', 'print nothing, and exit with 1 unless it is ready')
  .action((flags: RemoteFlags & { quiet?: boolean }) =>
    ask(flags, async (to) => {
      const status = await to.status();
      if (flags.quiet) process.exit(status.isReady ? 0 : 1);
      return flags.json ? JSON.stringify(status) : statusText(status);
    }),
  );

remote(program.command('top').description('watch a running pgweir, once a second'))
  .option('--once', 'print one screen')
  .action((flags: RemoteFlags & { once?: boolean }) =>
    ask(flags, async (to) => {
      if (flags.json) return JSON.stringify(await to.status());
      await runTop(to, process.stdout, flags.once === true);
      return '';
    }),
  );

remote(program.command('coupling').description('print which services share which tables, and what they take'))
  .option('--since <time>', 'how far back, in whole hours: 90m, 24h; at most 48 hours are kept', '24h')
  .option('--dot', 'print a graph for Graphviz')
  .option('--markdown', 'print Markdown')
  .action((flags: RemoteFlags & { since: string; dot?: boolean; markdown?: boolean }) =>
    ask(flags, async (to) => {
      const back = durationOf(flags.since);
      if (back === undefined) throw new Error('--since wants a time such as 90m or 24h');
      const coupling = await to.coupling(Date.now() - back);
      if (flags.json) return JSON.stringify(coupling);
      return flags.dot ? couplingDot(coupling) : flags.markdown ? couplingMarkdown(coupling) : couplingText(coupling);
    }),
  );

remote(
  program
    .command('upgrade')
    .description(
      'start the program that is installed now, which takes over; this one serves its clients until they leave',
    ),
).action((flags: RemoteFlags) =>
  ask(flags, async (to) => {
    const pid = await to.upgrade();
    return flags.json ? JSON.stringify({ pid }) : `process ${pid} has taken over`;
  }),
);

remote(program.command('explain').description('print why a request was refused'))
  .argument('<id>', "the id in the error's DETAIL")
  .action((id: string, flags: RemoteFlags) =>
    ask(flags, async (to) => {
      const [, number] = /^(?:id=)?(\d+)$/.exec(id) ?? [];
      if (number === undefined) throw new Error('the id is a number, as in id=4711 of the error’s DETAIL');
      const record = await to.explain(Number(number));
      return flags.json ? JSON.stringify(record) : explanationOf(record);
    }),
  );

program
  .command('completion')
  .description('print completions for a shell')
  .argument('<shell>', 'bash, zsh or fish')
  .action((shell: string) => {
    const script = completionOf(program, shell);
    if (script === null) program.error('pgweir: there are completions for bash, zsh and fish');
    console.log(script);
  });

const switches = program.command('switch').description('see and set the switches of a running pgweir');
remote(switches.command('list').description('print all switches, and what share of the load they are for')).action(
  (flags: RemoteFlags) =>
    ask(flags, async (to) => {
      const status = await to.status();
      return flags.json ? JSON.stringify(status.switches) : switchTable(status);
    }),
);
remote(
  switches
    .command('set')
    .description('set a switch: closing takes effect at once, opening in steps')
    .argument('<name>', 'a switch, or a class')
    .argument('<state>', 'on, off, hold, or a share such as 25%')
    .option('--for <time>', 'until then: 90s, 10m, 2h; then it opens in steps')
    .option('--because <text>', 'the reason, for others to read')
    .option('--dry-run', 'only say what it would touch'),
).action((name: string, state: string, flags: RemoteFlags & { for?: string; because?: string; dryRun?: boolean }) =>
  ask(flags, (to) => setSwitch(to, name, state, flags)),
);
remote(switches.command('clear').description('set a switch back to the configuration').argument('<name>')).action(
  (name: string, flags: RemoteFlags) => ask(flags, (to) => setSwitch(to, name, 'default', flags)),
);
remote(
  switches
    .command('passthrough')
    .description('the panic lever: no admission, no sharing, plain pooling')
    .argument('<on|off>'),
).action((state: string, flags: RemoteFlags) => ask(flags, (to) => setSwitch(to, 'passthrough', state, flags)));

await program.parseAsync();

/** The file and what it names; `advice` is what may not be meant. */
function checkFile(file: string): { problems: string[]; advice: string[] } {
  const loaded = loadConfig(file, process.env);
  if (!loaded.ok) return { problems: loaded.problems, advice: [] };
  const { config } = loaded;
  const { auth } = config;
  const at = (name: string) => resolve(dirname(file), name);
  // Where a configuration is checked its secrets need not be.
  const named = [
    ['auth.users', auth.users],
    ['auth.hba', auth.hba],
    ['auth.ident', auth.ident],
    ['ops.tokenFile', config.ops.tokenFile],
  ] as const;
  const missing = named.flatMap(([key, name]) =>
    name === null || existsSync(at(name)) ? [] : [`${key}: there is no ${at(name)} here`],
  );
  const isAbsent = (key: string) => missing.some((each) => each.startsWith(key));
  try {
    if (!isAbsent('auth.hba') && !isAbsent('auth.ident')) readHba(config, at);
    const users = isAbsent('auth.users') ? null : Users.read(auth.users === null ? null : at(auth.users));
    const names = users === null || auth.method === 'trust' ? null : users.names;
    return { problems: [], advice: [...adviceFor(config, names), ...missing] };
  } catch (thrown) {
    const what = messageOf(thrown);
    return { problems: [/^[^\s:]+:\d+:/.test(what) ? what : `${file}:1:1: ${what}`], advice: [] };
  }
}

function importFile(file: string, out: string | undefined): void {
  const read = (path: string) => readFileSync(resolve(dirname(file), path), 'utf8');
  try {
    const { yaml, notes, secrets } = importPgbouncer(read(file), read);
    if (out === undefined) return console.log(yaml);
    const files = [
      [resolve(out), yaml, 0o644] as const,
      ...secrets.map((each) => [resolve(dirname(out), each.file), each.text, 0o600] as const),
    ];
    for (const [path] of files)
      if (existsSync(path)) throw new Error(`${path} is there already: choose another place with --out`);
    for (const [path, text, mode] of files) writeFileSync(path, text, { mode, flag: 'wx' });
    console.log([`${out}: written. Try it with: pgweir check ${out}`, ...notes.map((each) => `  ${each}`)].join('\n'));
  } catch (thrown) {
    console.error(`pgweir: ${messageOf(thrown)}`);
    process.exit(1);
  }
}

/** Says what it touches before it is done. */
async function setSwitch(
  to: Remote,
  name: string,
  state: string,
  flags: RemoteFlags & { for?: string; because?: string; dryRun?: boolean },
): Promise<string> {
  const { touched } = await to.setSwitch(name, { state, dryRun: true });
  if (!flags.json) console.log(`${name}: ${effectOf(touched)}`);
  if (flags.dryRun) return flags.json ? JSON.stringify({ name, isDone: false, touched }) : 'not set (--dry-run)';
  const answer = await to.setSwitch(name, { state, for: flags.for, reason: flags.because });
  if (flags.json) return JSON.stringify(answer);
  return `set to ${state}${flags.for === undefined ? '' : ` for ${flags.for}`}${answer.warning === '' ? '' : `; ${answer.warning}`}`;
}

/** Where a pgweir with this ops.host is reached from here. */
function urlOf(host: string, port: number): string {
  if (host === '0.0.0.0') return urlOf('127.0.0.1', port);
  if (host === '::') return urlOf('::1', port);
  return `http://${isIPv6(host) ? `[${host}]` : host}:${port}`;
}

/** Prints what a running pgweir says; exits with 1 when it does not. */
async function ask(flags: RemoteFlags, question: (to: Remote) => Promise<string>): Promise<void> {
  try {
    const ops = flags.config === undefined ? null : orExit(loadConfig(resolve(flags.config), process.env)).ops;
    const url = flags.url ?? urlOf(ops?.host ?? '127.0.0.1', ops?.port ?? 9432);
    const inConfig = ops?.tokenFile === null || ops === null ? null : resolve(dirname(flags.config!), ops.tokenFile);
    const tokenFile = flags.tokenFile ?? inConfig;
    console.log(await question(new Remote({ url, tokenFile, user: flags.user }, process.env.PGPASSWORD ?? '')));
  } catch (thrown) {
    console.error(`pgweir: ${messageOf(thrown)}`);
    process.exit(1);
  }
}

async function serve(file: string, pace: number): Promise<void> {
  const path = resolve(file);
  const reload = () => loadConfig(path, process.env);
  await run(orExit(reload()), reload, path, { pace });
}

async function serveEmbedded(dataDir: string | null, port: number, opsPort: number): Promise<void> {
  const { startEmbeddedPostgres } = await import('./embedded.ts');
  const postgres = await startEmbeddedPostgres({ dataDir: dataDir === null ? null : resolve(dataDir) }).catch(
    (thrown: unknown) => {
      console.error(`pgweir: ${messageOf(thrown)}`);
      process.exit(1);
    },
  );
  const text = JSON.stringify({
    listen: { port },
    ops: { port: opsPort },
    log: { format: process.stdout.isTTY ? 'text' : 'json' },
    auth: { method: 'trust' },
    databases: { '*': { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
  });
  const reload = () => parseConfig(text, 'embedded', {});
  const listening = await run(orExit(reload()), reload, null, { after: () => postgres.stop() });
  console.log(
    `\nReady. In another terminal:\n\n  psql "host=127.0.0.1 port=${listening.port} user=postgres dbname=postgres"\n`,
  );
  console.log(
    `Dashboard: http://127.0.0.1:${listening.opsPort}/   Metrics: http://127.0.0.1:${listening.opsPort}/metrics   Console: the same with dbname=pgweir, then SHOW HELP;\n`,
  );
}

function orExit(loaded: Loaded) {
  if (loaded.ok) return loaded.config;
  console.error(loaded.problems.join('\n'));
  process.exit(1);
}

/** Runs until a signal ends it: TERM drains, a second TERM or INT or QUIT ends at once; HUP reloads, USR1 and USR2 are PAUSE and RESUME. */
async function run(
  config: ReturnType<typeof orExit>,
  reload: () => Loaded,
  file: string | null,
  { after = async () => {}, pace = 1 }: { after?: () => Promise<void>; pace?: number },
) {
  const log = makeLogger(config.log);
  const end = async (work: () => Promise<void>) => {
    await work();
    await after();
    process.exit(0);
  };
  let app: App;
  let listening: { port: number; opsPort: number };
  try {
    app = new App({
      config,
      reload,
      file,
      log,
      pace,
      onShutdown: () => void end(() => app.stop()),
      inherited: inheritedSockets(),
      passCancel: (key) => predecessor.cancel(key),
      ...(file === null ? {} : { startSuccessor }),
    });
    // From here on HUP must not end the process.
    process.on('SIGHUP', () => app.reload());
    listening = await app.start();
  } catch (thrown) {
    console.error(`pgweir: ${explain(thrown)}`);
    await after();
    process.exit(1);
  }
  predecessor.tellReady();
  tellSystemd();
  let isEnding = false;
  process.on('SIGTERM', () => {
    if (isEnding) return void end(() => app.stop());
    isEnding = true;
    void end(() => app.drain());
  });
  for (const signal of ['SIGINT', 'SIGQUIT'] as const) process.on(signal, () => void end(() => app.stop()));
  process.on('SIGUSR1', () => app.pause());
  process.on('SIGUSR2', () => app.resume());
  process.on('uncaughtException', (thrown) => app.onBug('uncaught exception', thrown));
  process.on('unhandledRejection', (thrown) => app.onBug('unhandled rejection', thrown));
  return listening;
}

/** Type=notify: systemd waits until it serves. Node cannot write to datagram sockets; systemd brings a program that does. */
function tellSystemd(): void {
  if (process.env.NOTIFY_SOCKET === undefined) return;
  const child = spawn('systemd-notify', ['--ready', `--pid=${process.pid}`], { stdio: 'ignore' });
  child.on('error', (thrown) => console.error(`pgweir: systemd could not be told: ${messageOf(thrown)}`));
}

function explain(thrown: unknown): string {
  const { code, port, address } = thrown as { code?: string; port?: number; address?: string };
  if (code === 'EADDRINUSE')
    return `port ${port} of ${address} is taken: something else listens there. Stop it, or choose another port (listen.port, ops.port; with --embedded: --port, --ops-port).`;
  if (code === 'EACCES' && port !== undefined) return `port ${port} of ${address} may not be used by this user.`;
  return messageOf(thrown);
}
