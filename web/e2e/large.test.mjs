// A large file through the page: the progress is fresh, and the page goes on answering. With COUPONBOOK_FULL=1 it is a
// million lines; the figures are printed, since what they are depends on the machine.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { ADMIN, browser, open, service } from './harness.mjs'

const LINES = process.env.COUPONBOOK_FULL ? 1_000_000 : 200_000
let chrome
let running
before(async () => {
  ;[chrome, running] = await Promise.all([browser(), service()])
})
after(async () => {
  await chrome?.close()
  await running?.stop()
})

/** Watches the page from within: when the words of the progress changed, and how long it could not draw. */
function watchPage() {
  const seen = { changes: [], longest: 0, gap: 0 }
  globalThis.watched = seen
  let before = ''
  let last = performance.now()
  const look = (now) => {
    seen.gap = Math.max(seen.gap, now - last)
    last = now
    const text = document.querySelector('main [role=progressbar]')?.getAttribute('aria-valuetext') ?? ''
    if (text !== before) {
      before = text
      seen.changes.push({ at: now, done: Number(text.split(' ')[0]?.replaceAll(',', '')) || 0 })
    }
    requestAnimationFrame(look)
  }
  requestAnimationFrame(look)
  new PerformanceObserver((list) => { for (const entry of list.getEntries()) seen.longest = Math.max(seen.longest, entry.duration) }).observe({ type: 'longtask' })
}

test(`an import of ${LINES.toLocaleString('en')} lines is followed, and the page answers meanwhile`, { timeout: 600_000 }, async () => {
  const { api } = running
  const book = await api.book({ name: 'A large file' })
  const { page, click, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto(`/books/${book.id}/import`)
  await page.getByText('or drop it anywhere').waitFor()
  // Made in the page and dropped on it, as a file from a disk would be.
  await page.evaluate((lines) => {
    const parts = ['code\n']
    for (let n = 0; n < lines; n++) parts.push(`LARGE-${String(n).padStart(8, '0')}\n`)
    const data = new DataTransfer()
    data.items.add(new File(parts, 'large.csv', { type: 'text/csv' }))
    dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
  }, LINES)
  await page.getByRole('region', { name: 'First rows' }).waitFor()
  await page.evaluate(watchPage)
  const begun = Date.now()
  await click(page.getByRole('button', { name: 'Import', exact: true }))
  await page.waitForURL('**/import?job=*')
  const id = new URL(page.url()).searchParams.get('job')

  // What the service had reached by then, against what the page says.
  const known = []
  let ended = false
  const follow = (async () => {
    while (!ended) {
      const { progress, state } = await api.send('GET', `/v1/jobs/${id}`)
      known.push({ at: await page.evaluate(() => performance.now()), done: progress.done })
      ended = state !== 'queued' && state !== 'running'
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  })()
  const pressed = Date.now()
  await page.getByRole('button', { name: /^Theme/ }).click()
  await page.getByRole('button', { name: 'Theme: light' }).waitFor()
  const answered = Date.now() - pressed
  await page.getByText(`${LINES.toLocaleString('en')} codes were added to A large file.`).waitFor({ timeout: 500_000 })
  const took = (Date.now() - begun) / 1_000
  await follow
  const { changes, longest, gap } = await page.evaluate(() => globalThis.watched)
  const reached = (done) => known.find((point) => point.done >= done)?.at ?? 0
  const ages = changes.filter(({ done }) => done > 0).map((change) => change.at - reached(change.done))
  const steps = changes.map(({ at }, n) => (n ? at - changes[n - 1].at : 0))
  console.log(`# ${LINES} lines in ${took.toFixed(1)} s; progress drawn ${changes.length} times, at most ${Math.round(Math.max(...steps.slice(1)))} ms apart`)
  console.log(`# a step of the service is on the screen within ${Math.round(Math.max(...ages))} ms`)
  console.log(`# a press was answered in ${answered} ms; longest task ${Math.round(longest)} ms, longest time without a picture ${Math.round(gap)} ms`)
  assert.ok(changes.length >= 3, `the progress was drawn ${changes.length} times only`)
  assert.ok(changes.every(({ done }, n) => n === 0 || done >= changes[n - 1].done), 'progress never goes back')
  assert.equal((await api.send('GET', `/v1/books/${book.id}/stats`)).total, LINES)
  check()
})
