/** How a schedule stands; one without a next time has come to its end. */
import { serverNow } from '@/api/clock'
import type { Schemas } from '@/api/client'

export const stateOf = ({ paused, next_fire_at }: Pick<Schemas['Schedule'], 'paused' | 'next_fire_at'>) => (paused ? 'paused' : next_fire_at ? 'active' : 'over')

/** Whether it could go on as it is: it repeats, and ended early because no code was left. */
export const canGoOn = ({ cron, ends_at }: Pick<Schemas['Schedule'], 'cron' | 'ends_at'>): boolean => cron !== null && (ends_at === null || Date.parse(ends_at) > serverNow())
