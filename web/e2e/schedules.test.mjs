// A schedule by clicks alone: what it will do is seen before it is saved.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { ADMIN, HOLDER, browser, open, service, shot } from './harness.mjs'

let chrome
let running
let book
before(async () => {
  ;[chrome, running] = await Promise.all([browser(), service()])
  const { api } = running
  const mia = await api.user(HOLDER)
  book = await api.book({ name: 'Birthday gifts' }, ['GIFT-1', 'GIFT-2', 'GIFT-3'])
  const pool = await api.send('POST', '/v1/pools', { name: 'Club' })
  await api.send('POST', `/v1/pools/${pool.id}/members`, { user_ids: [mia.id] })
})
after(async () => {
  await chrome?.close()
  await running?.stop()
})

/** What the list of the next fires shows. */
const fires = (page) => page.getByRole('region', { name: 'The next ten times' }).locator('tbody tr')
const named = async () => (await running.api.send('GET', '/v1/schedules')).data

test('a schedule that repeats is seen, made, paused and started now', async () => {
  const { api } = running
  const { page, click, check, signIn } = await open(chrome, running, { allow: [/422/] })
  await signIn(ADMIN)
  await click(page.getByRole('link', { name: 'Schedules' }))
  await click(page.getByRole('link', { name: 'New schedule' }).first())
  await page.getByLabel('Name', { exact: true }).fill('Every evening')
  await page.getByLabel('Every', { exact: true }).selectOption('day')
  await page.getByLabel('At', { exact: true }).fill('02:30')
  await page.getByText('Every day at 02:30').waitFor()
  await fires(page).nth(9).waitFor()
  await page.waitForFunction(() => [...document.querySelectorAll('tbody td.lead')].every((cell) => /, 02:30 /.test(cell.textContent)))
  assert.deepEqual(await named(), [], 'the look ahead makes nothing')
  await shot(page, 'schedule-preview', true)

  // What is no time says so where the times would be, and nothing is lost.
  await page.getByLabel('Cron').fill('61 * * * *')
  await page.getByText('cron cannot be read').waitFor()
  await page.getByLabel('Cron').fill('0 9 * * 1')
  await page.getByLabel('Until', { exact: true }).fill('2031-01-01T00:00')
  await page.waitForFunction(() => [...document.querySelectorAll('tbody td.lead')].every((cell) => cell.textContent.startsWith('Mon')))
  await fires(page).nth(9).waitFor()
  await click(page.getByRole('button', { name: 'Make the schedule' }))
  await page.getByRole('heading', { name: 'Every evening' }).waitFor()
  const [made] = await named()
  assert.deepEqual([made.cron, made.kind, made.ends_at], ['0 9 * * 1', 'distribution', '2030-12-31T23:00:00.000000Z'])

  await click(page.getByRole('button', { name: 'Pause' }))
  await page.getByText('paused', { exact: true }).waitFor()
  assert.equal((await named())[0].paused, true)

  if ('clear' in (await (await fetch(`${running.url}/openapi.json`)).json()).components.schemas.ScheduleChange.properties) {
    await page.getByLabel('Until', { exact: true }).fill('')
    await click(page.getByRole('button', { name: 'Save' }))
    await page.getByText('Saved.').waitFor()
    const [changed] = await named()
    assert.deepEqual([changed.ends_at, changed.paused], [null, true], 'an end that is emptied is gone, a pause stays')
  }

  await click(page.getByRole('button', { name: 'Run now' }))
  await page.getByRole('complementary', { name: 'Jobs in view' }).getByText('succeeded', { exact: true }).waitFor()
  assert.equal((await api.send('GET', `/v1/books/${book.id}/stats`)).assigned, 1)
  await page.getByText('Last started by hand').waitFor()

  await click(page.getByRole('button', { name: 'Delete' }))
  assert.equal((await named()).length, 1, 'it is asked first')
  await click(page.getByRole('dialog').getByRole('button', { name: 'Delete' }))
  await page.waitForURL('**/schedules')
  assert.deepEqual(await named(), [])
  check()
})

test('a schedule for one time shows it before it is made', async () => {
  const { page, click, check, signIn } = await open(chrome, running, { width: 360, height: 740 })
  await signIn(ADMIN)
  await page.goto('/schedules/new')
  await page.getByLabel('Name', { exact: true }).fill('New year')
  await page.getByLabel('What').selectOption('export')
  await click(page.getByText('Once', { exact: true }))
  await page.getByText('Say when, and they are shown here.').waitFor()
  await page.getByLabel('At', { exact: true }).fill('2031-01-01T08:00')
  await fires(page).getByText('Wed, Jan 1, 2031, 08:00').waitFor()
  assert.equal(await fires(page).count(), 1)
  await click(page.getByRole('button', { name: 'Make the schedule' }))
  await page.getByRole('heading', { name: 'New year' }).waitFor()
  const made = (await named()).find((one) => one.name === 'New year')
  assert.deepEqual([made.run_at, made.cron, made.export.book_id], ['2031-01-01T07:00:00.000000Z', null, book.id])
  check()
})

test('a schedule whose time has passed is over; one that ran out of codes is resumed', async () => {
  const { api } = running
  const begun = new Date(Date.now() - 5_000).toISOString()
  const once = await api.send('POST', '/v1/schedules', { name: 'Gone by', kind: 'export', export: { kind: 'coupons', book_id: book.id }, run_at: begun })
  const often = await api.send('POST', '/v1/schedules', { name: 'Every Monday', kind: 'export', export: { kind: 'coupons', book_id: book.id }, cron: '0 9 * * 1' })
  const { page, click, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto(`/schedules/${once.id}`)
  await page.getByText('all its times have passed').waitFor()
  assert.equal(await page.getByRole('button', { name: /^(Pause|Resume)$/ }).count(), 0)

  // What the first fire without a code leaves behind; it would take a minute to come.
  let isOut = true
  await page.route(`**/v1/schedules/${often.id}`, async (route) => {
    if (route.request().method() === 'PATCH') isOut = false
    if (!isOut || route.request().method() !== 'GET') return route.continue()
    return route.fulfill({ json: { ...(await (await route.fetch()).json()), next_fire_at: null } })
  })
  await page.goto(`/schedules/${often.id}`)
  await page.getByText('no code is left in the book').waitFor()
  await click(page.getByRole('button', { name: 'Resume' }))
  await page.getByRole('button', { name: 'Pause' }).waitFor()
  assert.equal((await named()).find((one) => one.id === often.id).paused, false)
  check()
})
