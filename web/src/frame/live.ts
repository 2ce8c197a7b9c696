/** Whether the page keeps itself up to date. */
import { ref, watch } from 'vue'

const KEY = 'couponbook.paused'
export const live = ref(sessionStorage.getItem(KEY) === null)
watch(live, (on) => (on ? sessionStorage.removeItem(KEY) : sessionStorage.setItem(KEY, '1')))
