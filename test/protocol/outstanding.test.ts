/** protocol/outstanding: to whom each reply belongs, held against a model of what a Postgres server does. */
import fc from 'fast-check';
import t from 'tap';
import { ServerMessage as S, Status } from '../../src/protocol/messages.ts';
import { type Action, type Note, Outstanding, type RequestKind } from '../../src/protocol/outstanding.ts';

const owner = 'client';

function machine() {
  const emitted: string[] = [];
  const outstanding = new Outstanding<string>((_, reply) => emitted.push(reply.toString()));
  const push = (kind: RequestKind, action: Action = 'forward', note: Note | null = null, reply: string | null = null) =>
    outstanding.push(kind, owner, action, reply === null ? null : Buffer.from(reply), note);
  const receive = (type: number, status = 0) => {
    const delivery = outstanding.begin(type, status);
    outstanding.end();
    return delivery;
  };
  return { outstanding, emitted, push, receive };
}

t.test('a reply of our own leaves when its turn comes', async (t) => {
  const { emitted, push, receive, outstanding } = machine();
  push('Parse');
  push('Close', 'synthesize', null, '3');
  push('Sync');
  t.same(emitted, []);
  t.equal(receive(S.ParseComplete), 'forward');
  t.same(emitted, ['3']);
  t.notOk(outstanding.isFree);
  t.equal(receive(S.ReadyForQuery, Status.Idle), 'forward');
  t.ok(outstanding.isFree);
});

t.test('after an error everything up to Sync is dropped, newest first', async (t) => {
  const { emitted, push, receive, outstanding } = machine();
  const ends: string[] = [];
  const note = (name: string): Note => ({ done: () => ends.push(`+${name}`), dropped: () => ends.push(`-${name}`) });
  push('Parse', 'forward', note('a'));
  push('Parse', 'synthesize', note('b'), '1');
  push('Bind', 'swallow', note('c'));
  t.equal(receive(S.ErrorResponse), 'forward');
  t.same(ends, ['-c', '-b', '-a']);
  t.ok(outstanding.isDiscarding);
  t.notOk(push('Query', 'forward', note('d')), 'a simple Query is skipped too');
  t.same(ends.at(-1), '-d');
  t.ok(push('Sync'));
  t.equal(receive(S.ReadyForQuery, Status.Idle), 'forward');
  t.ok(outstanding.isFree);
  t.same(emitted, []);
});

t.test('ReadyForQuery with status I does not free a server that owes more', async (t) => {
  const { push, receive, outstanding } = machine();
  push('Sync');
  push('Sync');
  receive(S.ReadyForQuery, Status.Idle);
  t.notOk(outstanding.isFree);
  receive(S.ReadyForQuery, Status.Idle);
  t.ok(outstanding.isFree);
});

t.test('a batch without Sync keeps its server', async (t) => {
  const { push, receive, outstanding } = machine();
  push('Parse');
  receive(S.ParseComplete);
  t.equal(outstanding.size, 0);
  t.notOk(outstanding.isFree);
});

t.test('an error inside a simple Query ends with its ReadyForQuery', async (t) => {
  const { push, receive, outstanding } = machine();
  const ends: string[] = [];
  push('Query', 'forward', { done: () => ends.push('done'), dropped: () => ends.push('dropped') });
  push('Query');
  receive(S.ErrorResponse);
  receive(S.ReadyForQuery, Status.Idle);
  t.same(ends, ['dropped']);
  receive(S.CommandComplete);
  receive(S.ReadyForQuery, Status.Idle);
  t.ok(outstanding.isFree);
});

t.test('Sync inside COPY FROM STDIN is ignored, and owed nothing for', async (t) => {
  const { push, receive, outstanding } = machine();
  for (const kind of ['Parse', 'Bind', 'Execute', 'Sync'] as const) push(kind);
  receive(S.ParseComplete);
  receive(S.BindComplete);
  receive(S.CopyInResponse);
  t.notOk(outstanding.isFree);
  push('CopyData');
  push('CopyEnd');
  push('Sync');
  receive(S.CommandComplete);
  t.equal(outstanding.size, 1);
  receive(S.ReadyForQuery, Status.Idle);
  t.ok(outstanding.isFree);
});

for (const [counted, title] of [
  [0, 'is ignored: the client has one to send yet'],
  [1, 'counts'],
  [2, 'counts, and so does the one behind it'],
] as const) {
  t.test(`a Sync amid the data of a COPY that fails ${title}`, async (t) => {
    const { push, receive, outstanding, emitted } = machine();
    push('Execute');
    receive(S.CopyInResponse);
    push('CopyData');
    push('Sync');
    push('CopyData');
    push('Sync');
    t.equal(receive(S.ErrorResponse), 'forward');
    t.ok(outstanding.isResyncWanted, 'the server is asked');
    // A ReadyForQuery for each Sync that counts, one for ours; then the empty Query.
    for (let time = 0; time <= counted; time++) t.equal(receive(S.ReadyForQuery, Status.Idle), 'swallow');
    t.equal(emitted.length, counted, 'the last of them is ours');
    receive(S.EmptyQueryResponse);
    receive(S.ReadyForQuery, Status.Idle);
    t.equal(outstanding.size, 0);
    t.equal(outstanding.isDiscarding, counted === 0);
    t.ok(push('Sync'));
    t.equal(receive(S.ReadyForQuery, Status.Idle), 'forward');
    t.ok(outstanding.isFree);
  });
}

t.test('COPY sent in one go with the query behind it keeps the order', async (t) => {
  const { push, receive, outstanding } = machine();
  for (const kind of ['Query', 'CopyData', 'CopyEnd', 'Query'] as const) push(kind);
  receive(S.CopyInResponse);
  receive(S.CommandComplete);
  receive(S.ReadyForQuery, Status.Idle);
  t.equal(outstanding.size, 1);
  receive(S.ReadyForQuery, Status.Idle);
  t.ok(outstanding.isFree);
});

t.test('a reply that does not fit loses the connection, not the order', async (t) => {
  const { push, receive, outstanding } = machine();
  push('Parse');
  t.equal(receive(S.BindComplete), 'holder');
  t.ok(outstanding.isLost);
  t.notOk(outstanding.isFree);
});

t.test('an error of an injected request is its owner’s when it stands for another', async (t) => {
  const { push, receive } = machine();
  push('Parse', 'swallow', { errorIsForward: true });
  t.equal(receive(S.ErrorResponse), 'forward');
});

t.test('a Begin leaves no batch open, and its transaction is known before ReadyForQuery', async (t) => {
  const { push, receive, outstanding } = machine();
  push('Begin', 'swallow');
  t.notOk(outstanding.isBatchOpen);
  t.ok(outstanding.isFlushWanted, 'whoever waits for it must say so');
  push('Query');
  t.notOk(outstanding.isFlushWanted);
  for (const type of [S.ParseComplete, S.BindComplete, S.CommandComplete, S.CloseComplete])
    t.equal(receive(type), 'swallow');
  t.equal(outstanding.status, Status.Transaction);
  t.equal(receive(S.CommandComplete), 'forward');
  t.equal(receive(S.ReadyForQuery, Status.Transaction), 'forward');
  t.ok(outstanding.isQuiet);
  t.notOk(outstanding.isFree);
});

t.test('notices and parameter changes are nobody’s reply', async (t) => {
  const { push, receive, outstanding } = machine();
  push('Query');
  for (const type of [S.NoticeResponse, S.ParameterStatus, S.NotificationResponse]) t.equal(receive(type), 'holder');
  t.equal(outstanding.size, 1);
});

t.test('an owner that has left gets nothing more, and the server becomes free all the same', async (t) => {
  const { emitted, push, receive, outstanding } = machine();
  push('Execute');
  push('Close', 'synthesize', null, '3');
  push('Sync');
  outstanding.abandon(owner);
  t.equal(receive(S.CommandComplete), 'swallow');
  t.equal(receive(S.ReadyForQuery, Status.Idle), 'swallow');
  t.same(emitted, []);
  t.ok(outstanding.isFree);
});

/** A server reduced to its protocol: what it answers to each request, given which of them fail. */
class ModelServer {
  #isSkipping = false;
  answer(kind: RequestKind, fails: boolean): number[] {
    if (this.#isSkipping && kind !== 'Sync') return [];
    switch (kind) {
      case 'Query':
      case 'FunctionCall':
        return [fails ? S.ErrorResponse : S.CommandComplete, S.ReadyForQuery];
      case 'Sync':
        this.#isSkipping = false;
        return [S.ReadyForQuery];
      default: {
        if (fails) {
          this.#isSkipping = true;
          return [S.ErrorResponse];
        }
        const replies: Partial<Record<RequestKind, number[]>> = {
          Parse: [S.ParseComplete],
          Bind: [S.BindComplete],
          Close: [S.CloseComplete],
          Describe: [S.ParameterDescription, S.RowDescription],
          Execute: [S.DataRow, S.CommandComplete],
        };
        return replies[kind]!;
      }
    }
  }
}

const kinds = ['Parse', 'Bind', 'Close', 'Describe', 'Execute', 'Sync', 'Query', 'FunctionCall'] as const;
const step = fc.record({
  kind: fc.constantFrom(...kinds),
  fails: fc.boolean(),
  action: fc.constantFrom<Action>('forward', 'swallow', 'synthesize'),
  /** Replies that have arrived before the next request is sent. */
  reads: fc.nat(4),
});

t.test('every reply finds its owner in any interleaving of requests, errors and replies', async (t) => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const { outstanding, push, receive, emitted } = machine();
      const server = new ModelServer();
      const wire: { type: number; action: Action }[] = [];
      let ended = 0;
      let pushed = 0;
      const arrive = () => {
        const { type, action } = wire.shift()!;
        const delivery = receive(type, Status.Idle);
        if (delivery !== action) throw new Error(`${String.fromCharCode(type)}: ${delivery}, expected ${action}`);
      };
      for (const { kind, fails, action, reads } of [
        ...steps,
        { kind: 'Sync' as const, fails: false, action: 'forward' as const, reads: 1000 },
      ]) {
        // Only what never reaches the server is synthesized.
        const isOurs = action === 'synthesize' && (kind === 'Parse' || kind === 'Close');
        const act: Action = isOurs ? 'synthesize' : action === 'synthesize' ? 'forward' : action;
        pushed++;
        const end = () => ended++;
        const isSent = push(kind, act, { done: end, dropped: end }, isOurs ? 'ours' : null);
        if (isSent && !isOurs) for (const type of server.answer(kind, fails)) wire.push({ type, action: act });
        // A server that we know to skip gets nothing; the model must skip the same.
        else if (!isSent && server.answer(kind, false).length > 0) throw new Error(`${kind} was not sent, but counts`);
        for (let count = 0; count < reads && wire.length > 0; count++) arrive();
      }
      while (wire.length > 0) arrive();
      t.equal(ended, pushed, 'each entry ends once');
      t.ok(outstanding.isFree);
      t.ok(emitted.length <= pushed);
    }),
    { numRuns: 500 },
  );
});
