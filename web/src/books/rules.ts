/** The rules of a book as sentences. */
import { useI18n } from 'vue-i18n'
import type { Schemas } from '@/api/client'
import { day, duration, number } from '@/ui/format'

/** Of a book that is there, or of one that is still a form. */
type Rules = Schemas['Book'] | Schemas['NewBook']

export function useRules() {
  const { t } = useI18n()
  return (book: Rules): string => {
    const uses = book.redemptions_per_coupon ?? 1
    const zone = book.time_zone ?? 'UTC'
    const parts = [uses === 1 ? t('rules.once') : t('rules.times', { n: number(uses) })]
    if (book.max_assignments_per_user) parts.push(t('rules.perUser', { n: number(book.max_assignments_per_user) }, book.max_assignments_per_user))
    if (book.max_redemptions_per_user) parts.push(t('rules.redeemPerUser', { n: number(book.max_redemptions_per_user) }, book.max_redemptions_per_user))
    if (book.require_lock ?? true) parts.push(t('rules.lock', { time: duration(book.lock_seconds ?? 300), n: book.lock_renewals ?? 3 }, book.lock_renewals ?? 3))
    else parts.push(t('rules.noLock'))
    if (book.starts_at && book.ends_at) parts.push(t('rules.between', { from: day(book.starts_at, zone), to: day(book.ends_at, zone) }))
    else if (book.starts_at) parts.push(t('rules.from', { from: day(book.starts_at, zone) }))
    else if (book.ends_at) parts.push(t('rules.until', { to: day(book.ends_at, zone) }))
    if (book.valid_days_after_assignment) parts.push(t('rules.days', { n: number(book.valid_days_after_assignment) }, book.valid_days_after_assignment))
    if (book.self_service) parts.push(t('rules.selfService'))
    if (book.status === 'draft') parts.push(t('rules.draft'))
    return parts.join(' ')
  }
}
